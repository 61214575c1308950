"""Data sets by name: from a server on the loopback address or a file, to a directory that trains."""

import multiprocessing
import shutil
from collections import namedtuple
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
from recbole_sigma.convert import catalogue
from recbole_sigma.convert import download as downloads
from recbole_sigma.convert import get as module
from recbole_sigma.convert.catalogue import _entry, entries
from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import read_json

DAT = {"kind": "csv", "delimiter": "::", "header": False}
RATINGS = {
    "paths": ["ratings.dat"], **DAT, "columns": ["user", "item", "rating", "time"], "user": "user", "item": "item",
    "time": "time", "rating": "rating",
}  # fmt: skip
MOVIES = {"paths": ["movies.dat"], **DAT, "columns": ["item", "title", "genres"], "item": "item", "title": "title"}
# Five users with the same five items, and one with one of his own: the 5-core has 25 interactions.
LINES = [f"u{user}::i{item}::5::{10 * user + item}" for user in range(5) for item in range(5)] + ["u9::i9::1::7"]
FILES = {
    "ml/ratings.dat": "\n".join(LINES).encode(),
    "ml/movies.dat": b"".join(b"i%d::Film %d (1999)::Drama|War\n" % (n, n) for n in range(5)),
}
MADE = {"films", "films/films.inter", "films/films.item", "films/source.json"}
Know = Callable[..., None]


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The default of data_path, in a working directory of its own; failures do not take long."""
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(module, "PATIENCE", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "dataset"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as each:
        each.put("/ml.zip", zipped(FILES))
        yield each


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch, server: Server) -> Know:
    """`know("/ml.zip", ...)`: the data set `films` is known, to be had from these paths of the server."""

    def add(*paths: str, megabytes: float = 1, **content: Any) -> None:
        forms = {"interactions": RATINGS, "items": MOVIES}
        sources = [{"url": server.address + path, "megabytes": megabytes, **forms} for path in paths] or [forms]
        defaults = {"title": "Films", "page": "http://films.invalid", "filters": {"k_core": 5}, "sources": sources}
        monkeypatch.setitem(entries(), "films", _entry("films", defaults | content))

    return add


def use(**settings: Any) -> Config:
    return Config("GRU4Rec", "films", settings={"use_gpu": False, **settings})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_known_data_set_is_downloaded_once_filtered_and_recorded(
    know: Know, server: Server, data: Path, capsys: Any
) -> None:
    know("/ml.zip", expected={"users": 5, "items": 5, "interactions": 25})
    assert use()["data_path"] == "dataset/films" and names(data) == MADE
    inter, item = ((data / f"films/films.{end}").read_text().splitlines() for end in ("inter", "item"))
    assert len(inter) == 26 and len(item) == 6 and "u0" in inter[1] and "Film 0 (1999)" in item[1]
    record = read_json(data / "films/source.json", dict)
    assert record["source"] == f"{server.address}/ml.zip" and len(record["sha256"]) == 64
    assert (record["interactions"], record["filters"]["k_core"]) == (25, 5)
    said = capsys.readouterr().err.splitlines()[0]
    assert all(each in said for each in ("Films", "127.0.0.1", "1 MB"))
    use()
    assert len(server.requests) == 1 and capsys.readouterr().err == ""


def test_train_downloads_after_the_settings_are_checked_and_then_trains(
    know: Know, server: Server, refused: Any, capsys: Any
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


def test_the_next_address_is_used_when_one_fails(know: Know, server: Server, data: Path) -> None:
    server.put("/damaged.zip", zipped(FILES)[:300])
    know("/missing.zip", "/damaged.zip", "/ml.zip")
    use()
    assert [path for path, _ in server.requests] == ["/missing.zip", "/damaged.zip", "/ml.zip"] and names(data) == MADE


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ({"status": 403}, "HTTP 403"), ({"body": b"<html>Log in"}, "web page"),
        ({"body": zipped({"../ratings.dat": b""})}, "outside"), ({"body": zipped({"ratings.dat": bytes(10**8)})}, "MB"),
        ({"body": zipped({"ratings.dat": b"x"})}, "ratings.dat"), ({"body": zipped({"a": b""})}, "ratings.dat"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_with_the_address_and_the_command_and_leaves_nothing(
    answer: dict[str, Any], named: str, know: Know, server: Server, data: Path, capsys: Any
) -> None:
    know("/x.zip")
    url = server.put("/x.zip", **answer)
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=films", "--data_path=mine", "--use_gpu=False"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    way_out = f"get {url} by hand, then: recbole-sigma datasets get films --from=FILE --data_path=mine"
    assert line.startswith("recbole-sigma: error:") and named in line and way_out in line, line
    assert names(data.parent / "mine") == set()


def test_a_disk_that_is_full_or_cannot_be_written_is_one_line_too(
    know: Know, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know("/ml.zip")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(5))
    for data_path, text in {"dataset": r"No space left.*--from=FILE", "/dev/null/x": r"/dev/null.*--from=FILE"}.items():
        with pytest.raises(UserError, match=text):
            use(data_path=data_path)
    assert names(data) == set()


def test_download_false_never_touches_the_network_and_more_than_1_gb_needs_true(know: Know, server: Server) -> None:
    know("/ml.zip")
    for refusal in (lambda: use(download=False), lambda: check_early("SIGMA", "films", {"download": Given(False)})):
        with pytest.raises(UserError, match=r"'films'.*download is false.*ml\.zip.*--from=FILE"):
            refusal()
    know()  # without an address
    with pytest.raises(UserError, match=r"by hand.*films\.invalid"):
        use()
    know("/ml.zip", megabytes=1200)
    with pytest.raises(UserError, match=r"1\.2 GB.*--download=true"):
        use()
    assert server.requests == []
    use(download=True)
    assert len(server.requests) == 1


def test_from_takes_the_archive_a_file_of_it_a_directory_or_an_address(
    know: Know, server: Server, tmp_path: Path, capsys: Any
) -> None:
    know()
    (tmp_path / "renamed").write_bytes(zipped(FILES))
    (tmp_path / "ml").mkdir()
    for name in ("ratings (2).dat", "ml/ratings.dat"):
        (tmp_path / name).write_bytes(FILES["ml/ratings.dat"])
    for given in ("renamed", "ratings (2).dat", "ml", f"{server.address}/ml.zip"):
        assert cli.main(["datasets", "get", "films", f"--from={given}"]) == 0
        assert capsys.readouterr().out.split()[-6:] == ["5", "5", "25", "5.0000", "0.00%", "dataset/films"]
        assert (tmp_path / given).exists() or "://" in given
        shutil.rmtree(tmp_path / "dataset")


def test_from_refuses_what_is_not_the_data_set(know: Know, tmp_path: Path, refused: Any, server: Server) -> None:
    know("/ml.zip")
    (tmp_path / "other.txt").write_text("a")
    get = ("datasets", "get", "films")
    refused(*get, "--from=other.txt", names=["other.txt", "ratings.dat"])
    refused(*get, "--from=none", names=["none"])
    refused("datasets", "get", "mine", "--from=other.txt", names=["recbole-sigma convert other.txt"])
    refused(*get, f"--from={server.address}/ml.zip", "--download=false", names=["download is false"])
    assert server.requests == [] and cli.main([*get]) == 0
    assert cli.main([*get, "--from=other.txt"]) == 2  # it is there already
    shutil.rmtree(tmp_path / "dataset")
    assert cli.main([*get, "--from=http://["]) == 2


def test_other_numbers_than_those_of_the_papers_are_a_warning_with_both(know: Know, caplog: Any) -> None:
    know("/ml.zip", expected={"users": 22363, "items": 5, "interactions": 198502}, note="Only of 2019.")
    use()
    (warning,) = caplog.messages
    assert all(each in warning for each in ("films", "5 users", "22,363", "25 inter", "198,502", "Only of 2019."))


def test_a_file_that_changed_since_it_was_recorded_is_refused(know: Know, server: Server, data: Path) -> None:
    know("/ml.zip")
    use()
    for end in ("inter", "item"):
        (data / f"films/films.{end}").unlink()
    same = server.answers["/ml.zip"]
    server.put("/ml.zip", zipped(FILES | {"more": b""}))
    with pytest.raises(UserError, match=r"SHA256.*source\.json"):
        use()
    server.answers["/ml.zip"] = same
    use()
    assert names(data) == MADE


def test_processes_at_once_download_once_and_all_find_it(know: Know, server: Server, data: Path) -> None:
    server.put("/ml.zip", zipped(FILES), seconds=0.5)
    know("/ml.zip")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=module.get, args=("films", Path("dataset"))) for _ in range(3)]
    for step in ("start", "join"):
        for process in processes:
            getattr(process, step)()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1 and names(data) == MADE


def test_a_killed_download_is_resumed_and_what_else_was_left_is_deleted(know: Know, server: Server, data: Path) -> None:
    content = zipped(FILES)
    half = len(content) // 2
    server.put("/ml.zip", content, headers={"ETag": '"1"'}, cuts=[half] * 3, ranges=False)
    know("/ml.zip")
    with pytest.raises(UserError, match=r"ml\.zip"):
        use()
    assert any(name.endswith("ml.zip.part") for name in names(data)) and not (data / "films").exists()
    for left in ("files", "films"):
        (data / ".films.download" / left).mkdir()
        (data / ".films.download" / left / "ratings.dat").touch()
    server.put("/ml.zip", content, headers={"ETag": '"1"'})
    use()
    assert server.requests[-1] == ("/ml.zip", f"bytes={half}-") and names(data) == MADE


def test_a_name_of_recboles_list_is_its_archive_with_the_files_renamed(know: Know, server: Server, data: Path) -> None:
    inter = b"user_id:token\titem_id:token\ttimestamp:float\na\tb\t1\n"
    url = server.put("/Anime.zip", zipped({"Anime.inter": inter, "Anime.item": b"item_id:token\nb\n"}))
    know(filters=None, sources=[{"url": url, "interactions": {"paths": ["*.inter", "*.item"], "kind": "atomic"}}])
    use()
    assert (data / "films/films.inter").read_bytes() == inter and names(data) == MADE
    assert entries()["anime"].origins[0].url.endswith("/anime.zip") and entries()["anime"].filters is None


def test_every_file_of_properties_dataset_has_settings_and_sources_that_are_known() -> None:
    for file in sorted((properties_path() / "dataset").glob("*.yaml")):
        about = yaml.safe_load(file.read_text(encoding="utf-8"))["catalogue"]
        assert {"title", "page", "licence", "note", "sources"} <= {*about}, file
        if "CATEGORY" not in file.stem:
            assert "catalogue" not in Config("GRU4Rec", file.stem, need_data=False).settings()
    wanted = "ml-100k ml-1m ml-20m ml-32m amazon-beauty amazon-2018-books amazon-2023-video-games yelp steam gowalla"
    assert {*wanted.split(), "lastfm", "diginetica", "yoochoose", "kuairand-1k", "lfm-1b", "epinions"} <= {*entries()}
    assert Config("SASRec", "ml-1m", need_data=False)["MAX_ITEM_LIST_LENGTH"] == 200
    beauty = entries()["amazon-beauty"]
    assert beauty.expected == {"users": 22_363, "items": 12_101, "interactions": 198_502}
    assert beauty.filters and beauty.filters.k_core == 5


def test_a_users_own_settings_are_no_known_data_set_and_a_wrong_catalogue_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").mkdir()
    monkeypatch.setattr(catalogue, "properties_path", lambda: tmp_path)
    (tmp_path / "dataset/mine.yaml").write_text("MAX_ITEM_LIST_LENGTH: 7\n")
    assert "mine" not in entries.__wrapped__()
    wrong = "topk: 7\ncatalogue: {title: x, sources: [{adress: x, interactions: {paths: [a]}}]}\n"
    (tmp_path / "dataset/mine.yaml").write_text(wrong)
    with pytest.raises(UserError, match=r"mine\.yaml:2.*adress"):
        entries.__wrapped__()


def test_the_table_and_the_page_of_a_data_set(capsys: Any) -> None:
    assert cli.main(["datasets"]) == 0
    table = capsys.readouterr().out
    assert "22,363" in table and "amazon-2023-CATEGORY" in table and "epinions" in table
    assert next(line for line in table.splitlines() if line.startswith("ml-100k ")).endswith("yes")
    assert cli.main(["datasets", "amazon-beauty"]) == 0
    page = yaml.safe_load(capsys.readouterr().out)["amazon-beauty"]
    assert page["expected"]["interactions"] == 198_502 and "recbole" in page["sources"][-1]


def test_nothing_is_written_into_a_directory_that_is_not_downloaded_and_it_may_be_a_link(tmp_path: Path) -> None:
    real = tmp_path / "größer" / "ähnlich"
    shutil.copytree(Path(__file__).parents[2] / "dataset" / "sample", real)
    (real / "sample.inter").rename(real / "ähnlich.inter")
    (tmp_path / "daten").mkdir()
    (tmp_path / "daten" / "ähnlich").symlink_to(real)
    real.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in [real, *real.rglob("*")]}
    settings = {"epochs": "1", "hidden_size": "8", "embedding_size": "8", "use_gpu": "False", "data_path": "daten"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=ähnlich", "--time_order=recbole", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in [real, *real.rglob("*")]} == before
    assert names(tmp_path / "daten") == {"ähnlich"}


def test_a_link_to_an_empty_directory_is_filled_and_stays_a_link(know: Know, tmp_path: Path, data: Path) -> None:
    know("/ml.zip")
    (tmp_path / "disk" / "films").mkdir(parents=True)
    data.mkdir()
    (data / "films").symlink_to(tmp_path / "disk" / "films")
    use()
    assert (data / "films").is_symlink() and names(tmp_path / "disk") == MADE
