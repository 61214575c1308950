"""Data sets by name: from a server on the loopback address or a file, to a directory that trains."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.file_server import Server, serving, zipped

from recbole_sigma import cli
from recbole_sigma.config.config import Config
from recbole_sigma.config.early import check_early
from recbole_sigma.config.values import Given, properties_path
from recbole_sigma.convert import download as downloads
from recbole_sigma.convert import get as module
from recbole_sigma.convert.catalogue import _entry, entries
from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import read_json
from recbole_sigma.training.trainer import SequenceTrainer

COLUMNS = {
    "columns": ["user", "item", "rating", "time"],
    "user": "user",
    "item": "item",
    "time": "time",
    "rating": "rating",
}
RATINGS = {"paths": ["ratings.dat"], "kind": "csv", "delimiter": "::", "header": False, **COLUMNS}
MOVIES = {
    "paths": ["movies.dat"], "kind": "csv", "delimiter": "::", "header": False, "columns": ["item", "title", "genres"],
    "item": "item", "title": "title", "categories": "genres",
}  # fmt: skip
# Five users with the same five items, and one with one of his own: the 5-core has 25 interactions.
LINES = [f"u{user}::i{item}::5::{10 * user + item}" for user in range(5) for item in range(5)] + ["u9::i9::1::7"]
FILES = {
    "ml/ratings.dat": "\n".join(LINES).encode(),
    "ml/movies.dat": b"".join(b"i%d::Film %d (1999)::Drama|War\n" % (n, n) for n in range(5)),
}
Know = Callable[..., None]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(module, "PATIENCE", 3)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as each:
        each.put("/ml.zip", zipped(FILES))
        yield each


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch, server: Server) -> Know:
    """`know("/ml.zip", ...)`: the data set `films` is known, to be had from these paths of the server."""

    def add(*paths: str, name: str = "films", **content: Any) -> None:
        forms = {"interactions": RATINGS, "items": MOVIES}
        sources = [{"url": server.address + path, "megabytes": 1, **forms} for path in paths] or [forms]
        defaults = {"title": "Films", "page": "http://films.invalid", "filters": {"k_core": 5}, "sources": sources}
        monkeypatch.setitem(entries(), name, _entry(name, defaults | content))

    return add


def small(**settings: Any) -> Config:
    return Config("GRU4Rec", "films", settings={"use_gpu": False, **settings})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


MADE = {"films", "films/films.inter", "films/films.item", "films/source.json"}


def test_a_known_data_set_is_downloaded_once_filtered_and_recorded(
    know: Know, server: Server, tmp_path: Path, capsys: Any
) -> None:
    know("/ml.zip", expected={"users": 5, "items": 5, "interactions": 25})
    assert small()["data_path"] == "dataset/films"
    assert names(tmp_path / "dataset") == MADE
    inter, item = ((tmp_path / "dataset/films" / f"films.{end}").read_text().splitlines() for end in ("inter", "item"))
    assert len(inter) == 26 and len(item) == 6 and "u0" in inter[1] and "Film 0 (1999)" in item[1]
    record = read_json(tmp_path / "dataset/films/source.json", dict)
    assert record["source"] == f"{server.address}/ml.zip" and len(record["sha256"]) == 64
    assert (record["interactions"], record["filters"]["k_core"]) == (25, 5)
    said = capsys.readouterr()
    assert "Films" in said.err and "127.0.0.1" in said.err and "1 MB" in said.err and "instead" not in said.err
    small()
    assert len(server.requests) == 1 and capsys.readouterr().err == ""


def test_train_downloads_after_all_settings_are_checked_and_then_trains(
    know: Know, server: Server, monkeypatch: pytest.MonkeyPatch, refused: Any, capsys: Any
) -> None:
    know("/ml.zip")
    refused("train", "--dataset=films", "--learnin_rate=1", names=["learning_rate"])
    refused("train", "--dataset=films", "--valid_metric=MRR@3", names=["valid_metric"])
    refused("compare", "--models=GRU4Rec,SASRek", "--datasets=films", names=["SASRec"])
    refused("train", "--dataset=film", names=["'films'"])
    assert server.requests == []
    arguments = ["--use_gpu=False", "--epochs=1", "--hidden_size=8", "--embedding_size=8", "--threads=1"]
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=films", *arguments]) == 0
    assert "saved/GRU4Rec-films" in capsys.readouterr().out and len(server.requests) == 1


def test_the_next_address_is_used_when_one_fails(know: Know, server: Server, capsys: Any) -> None:
    server.put("/damaged.zip", zipped(FILES)[:300])
    know("/missing.zip", "/damaged.zip", "/ml.zip")
    small()
    assert [path for path, _ in server.requests] == ["/missing.zip", "/damaged.zip", "/ml.zip"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ({"status": 403}, "HTTP 403"), ({"status": 404}, "HTTP 404"), ({"failures": 99}, "HTTP 503"),
        ({"body": b"<html>Log in", "headers": {"Content-Type": "text/html"}}, "web page"),
        ({"body": zipped({"../ratings.dat": b""})}, "outside"), ({"body": zipped({"a": b""})}, "ratings.dat"),
        ({"body": zipped({"ratings.dat": bytes(10**8)})}, "MB"), ({"body": zipped({"ratings.dat": b"x"})}, "ratings.dat"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_with_the_address_and_the_command_and_leaves_nothing(
    answer: dict[str, Any], named: str, know: Know, server: Server, tmp_path: Path, capsys: Any
) -> None:
    know("/x.zip")
    url = server.put("/x.zip", **answer)
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=films", "--data_path=data", "--use_gpu=False"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    way_out = f"get {url} by hand, then: recbole-sigma datasets get films --from=FILE --data_path=data"
    assert line.startswith("recbole-sigma: error:") and named in line and way_out in line, line
    assert names(tmp_path / "data") == set()


def test_a_full_or_read_only_disk_is_one_line_too(
    know: Know, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know("/ml.zip")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 5))
    with pytest.raises(UserError, match=r"No space left.*--from=FILE"):
        small()
    assert names(tmp_path) == {"dataset"}
    with pytest.raises(UserError, match=r"/dev/null.*--from=FILE"):
        small(data_path="/dev/null/data")


def test_download_false_never_touches_the_network_and_more_than_1_gb_needs_true(know: Know, server: Server) -> None:
    know("/ml.zip")
    for refusal in (lambda: small(download=False), lambda: check_early("SIGMA", "films", {"download": Given(False)})):
        with pytest.raises(UserError, match=r"'films'.*download is false.*ml\.zip.*--from=FILE"):
            refusal()
    source = {"url": f"{server.address}/ml.zip", "megabytes": 1200, "interactions": RATINGS}
    know(sources=[source])
    with pytest.raises(UserError, match=r"1\.2 GB.*--download=true"):
        small()
    know()  # without an address
    with pytest.raises(UserError, match=r"by hand.*films\.invalid"):
        small()
    assert server.requests == []
    know(sources=[source])
    small(download=True)
    assert len(server.requests) == 1


def test_from_takes_the_archive_a_file_of_it_a_directory_or_an_address(
    know: Know, server: Server, tmp_path: Path, capsys: Any
) -> None:
    know()
    (tmp_path / "renamed").write_bytes(zipped(FILES))
    (tmp_path / "ratings (2).dat").write_bytes(FILES["ml/ratings.dat"])
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.dat").write_bytes(FILES["ml/ratings.dat"])
    for given in ("renamed", "ratings (2).dat", "ml", f"{server.address}/ml.zip"):
        assert cli.main(["datasets", "get", "films", f"--from={given}"]) == 0
        shown = capsys.readouterr().out.split()
        assert shown[-7:] == ["sparsity", "5", "5", "25", "5.0000", "0.00%", "dataset/films"], shown
        assert (tmp_path / given).exists() or "://" in given
        shutil.rmtree(tmp_path / "dataset")


def test_from_refuses_what_is_not_the_data_set(know: Know, tmp_path: Path, refused: Any, server: Server) -> None:
    know("/ml.zip")
    (tmp_path / "other.txt").write_text("a")
    refused("datasets", "get", "films", "--from=other.txt", names=["other.txt", "ratings.dat"])
    refused("datasets", "get", "films", "--from=none", names=["none"])
    refused("datasets", "get", "mine", "--from=other.txt", names=["recbole-sigma convert other.txt"])
    refused(
        "datasets", "get", "films", f"--from={server.address}/ml.zip", "--download=false", names=["download is false"]
    )
    assert cli.main(["datasets", "get", "films"]) == 0
    assert cli.main(["datasets", "get", "films", "--from=other.txt"]) == 2  # it is there already
    assert len(server.requests) == 1


def test_other_numbers_than_those_of_the_papers_are_a_warning_with_both(know: Know, caplog: Any) -> None:
    know("/ml.zip", expected={"users": 22363, "items": 5, "interactions": 198502}, note="Only of 2019.")
    small()
    (warning,) = caplog.messages
    assert all(
        each in warning for each in ("films", "5 users", "22,363", "25 interactions", "198,502", "Only of 2019.")
    )


def test_a_file_that_changed_since_it_was_recorded_is_refused(know: Know, server: Server, tmp_path: Path) -> None:
    know("/ml.zip")
    small()
    (tmp_path / "dataset/films/films.inter").unlink()
    (tmp_path / "dataset/films/films.item").unlink()
    server.put("/ml.zip", zipped(FILES | {"more": b""}))
    with pytest.raises(UserError, match=r"SHA256.*source\.json"):
        small()
    server.put("/ml.zip", zipped(FILES))
    small()
    assert names(tmp_path / "dataset") == MADE


def test_two_processes_at_once_download_once_and_both_find_it(know: Know, server: Server, tmp_path: Path) -> None:
    server.put("/ml.zip", zipped(FILES), seconds=0.5)
    know("/ml.zip")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=module.get, args=("films", Path("dataset"))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1 and names(tmp_path / "dataset") == MADE


def test_a_killed_download_is_resumed(know: Know, server: Server, tmp_path: Path) -> None:
    content = zipped(FILES)
    server.put("/ml.zip", content, headers={"ETag": '"1"'}, cuts=[len(content) // 2] * 3, ranges=False)
    know("/ml.zip")
    with pytest.raises(UserError, match=r"ml\.zip"):
        small()
    assert any(name.endswith("ml.zip.part") for name in names(tmp_path / "dataset"))
    assert not (tmp_path / "dataset/films").exists()
    server.put("/ml.zip", content, headers={"ETag": '"1"'})
    small()
    assert server.requests[-1] == ("/ml.zip", f"bytes={len(content) // 2}-") and names(tmp_path / "dataset") == MADE


def test_a_name_of_recboles_list_is_its_archive_with_the_files_renamed(
    know: Know, server: Server, tmp_path: Path
) -> None:
    inter = b"user_id:token\titem_id:token\ttimestamp:float\na\tb\t1\n"
    url = server.put("/Anime.zip", zipped({"Anime.inter": inter, "Anime.item": b"item_id:token\nb\n"}))
    know(filters=None, sources=[{"url": url, "interactions": {"paths": ["*.inter", "*.item"], "kind": "atomic"}}])
    small()
    assert (tmp_path / "dataset/films/films.inter").read_bytes() == inter and names(tmp_path / "dataset") == MADE
    assert entries()["anime"].origins[0].url.endswith("/anime.zip") and entries()["anime"].filters is None


# --- what is written down


def test_every_file_of_properties_dataset_is_a_setting_and_a_source_that_the_converter_knows() -> None:
    files = sorted((properties_path() / "dataset").glob("*.yaml"))
    assert len(files) > 15
    for file in files:
        catalogue = yaml.safe_load(file.read_text())["catalogue"]
        assert {"title", "page", "licence", "note", "sources"} <= {*catalogue}, file
        if "CATEGORY" not in file.stem:
            config = Config("GRU4Rec", file.stem, settings={"use_gpu": False}, need_data=False)
            assert config["MAX_ITEM_LIST_LENGTH"] == {"m": 200, "k": 2000}.get(file.stem[0], 50) or file.stem in (
                "ml-100k", "lfm-1b"
            )  # fmt: skip
            assert "catalogue" not in config.settings()
    wanted = "ml-100k ml-1m ml-20m ml-32m amazon-beauty amazon-2018-books amazon-2023-video-games yelp steam gowalla"
    assert {*wanted.split(), "lastfm", "diginetica", "yoochoose", "kuairand-1k", "lfm-1b", "epinions"} <= {*entries()}
    beauty = {"users": 22_363, "items": 12_101, "interactions": 198_502}
    assert entries()["amazon-beauty"].expected == beauty and entries()["amazon-beauty"].filters.k_core == 5


def test_a_users_own_file_of_settings_is_not_a_known_data_set_and_a_wrong_catalogue_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_sigma.convert import catalogue

    shutil.copytree(properties_path(), tmp_path / "properties")
    monkeypatch.setattr(catalogue, "properties_path", lambda: tmp_path / "properties")
    (tmp_path / "properties/dataset/mine.yaml").write_text("MAX_ITEM_LIST_LENGTH: 7\n")
    assert "mine" not in entries.__wrapped__()
    (tmp_path / "properties/dataset/mine.yaml").write_text(
        "topk: 7\ncatalogue: {title: x, sources: [{adress: x, interactions: {paths: [a]}}]}\n"
    )
    with pytest.raises(UserError, match=r"mine\.yaml:2.*adress"):
        entries.__wrapped__()


def test_the_table_and_the_page_of_a_data_set(capsys: Any) -> None:
    assert cli.main(["datasets"]) == 0
    table = capsys.readouterr().out
    assert "22,363" in table and "amazon-2023-CATEGORY" in table and "epinions" in table
    (row,) = (line for line in table.splitlines() if line.startswith("ml-100k "))
    assert row.endswith("yes")
    assert cli.main(["datasets", "amazon-beauty"]) == 0
    page = yaml.safe_load(capsys.readouterr().out)["amazon-beauty"]
    assert page["expected"]["interactions"] == 198_502 and "recbole" in page["sources"][-1]


# --- directories of several kinds


def test_a_linked_or_read_only_directory_trains_and_nothing_is_written_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(__file__).parents[2] / "dataset" / "sample", tmp_path / "größer" / "ähnlich")
    (tmp_path / "größer/ähnlich/sample.inter").rename(tmp_path / "größer/ähnlich/ähnlich.inter")
    (tmp_path / "daten").mkdir()
    (tmp_path / "daten" / "ähnlich").symlink_to(tmp_path / "größer" / "ähnlich")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "größer").rglob("*")}
    (tmp_path / "größer/ähnlich").chmod(0o555)
    monkeypatch.setattr(SequenceTrainer, "fit", lambda *_: (_ for _ in ()).throw(UserError("the data was read")))
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=ähnlich", "--data_path=daten", "--use_gpu=False"]) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "größer").rglob("*")} == before
    assert names(tmp_path / "daten") == {"ähnlich"}


def test_a_link_to_an_empty_directory_is_filled_and_stays_a_link(know: Know, tmp_path: Path) -> None:
    know("/ml.zip")
    (tmp_path / "disk" / "films").mkdir(parents=True)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "films").symlink_to(tmp_path / "disk" / "films")
    small()
    assert (tmp_path / "dataset/films").is_symlink() and names(tmp_path / "disk") == MADE
