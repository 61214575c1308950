"""What is unpacked, and what is refused."""

import gzip
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from helpers.file_server import tarred, zipped

from recbole_sigma.convert.archive import unpack
from recbole_sigma.errors import UserError

PATTERNS = ("ratings*.csv", "movies.csv")
Pack = Callable[[Mapping[str, bytes]], bytes]
both = pytest.mark.parametrize("pack", [zipped, tarred])


def refused(content: bytes, tmp_path: Path, largest: int = 10**6, names: tuple[str, ...] = ()) -> None:
    """`unpack` raises one line that holds `names`, and nothing is outside its folder."""
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / "given", tmp_path / "out", PATTERNS, largest)
    assert all(each in str(caught.value) for each in (str(tmp_path / "given"), *names))
    assert {path.name for path in tmp_path.iterdir()} <= {"given", "out"}


@both
def test_only_files_that_match_are_copied_whatever_their_directory_and_the_name_of_the_archive(
    pack: Pack, tmp_path: Path
) -> None:
    content = {"ml/": b"", "ml/ratings-1.csv": b"a", "ml/x/movies.csv": b"b", "ml/read.me": b"c", "._ratings.csv": b"d"}
    (tmp_path / "given").write_bytes(pack(content))
    files = unpack(tmp_path / "given", tmp_path / "out", PATTERNS, 10**5)
    assert {path.name: path.read_bytes() for path in files} == {"ratings-1.csv": b"a", "movies.csv": b"b"}
    assert sorted(files) == sorted((tmp_path / "out").iterdir())


def test_a_single_file_plain_or_gzipped_may_have_another_name_with_the_same_ending(tmp_path: Path) -> None:
    for name, content in {"mine (1).csv": b"a", "mine (1).csv.gz": gzip.compress(b"a")}.items():
        (tmp_path / name).write_bytes(content)
        (file,) = unpack(tmp_path / name, tmp_path / "out", PATTERNS, 10**5)
        assert (file.name, file.read_bytes()) == ("mine (1).csv", b"a")
    assert (tmp_path / "mine (1).csv").exists()  # the user's own file stays


def test_a_directory_is_searched_for_the_files(tmp_path: Path) -> None:
    (tmp_path / "ml" / "deep").mkdir(parents=True)
    (tmp_path / "ml" / "deep" / "ratings.csv").write_bytes(b"a")
    (tmp_path / "ml" / "other.csv").write_bytes(b"b")
    assert unpack(tmp_path / "ml", tmp_path / "out", PATTERNS, 10**5) == [tmp_path / "ml" / "deep" / "ratings.csv"]


@both
@pytest.mark.parametrize("name", ["../ratings.csv", "/tmp/ratings.csv", "a/../../ratings.csv", "..\\evil"])
def test_an_archive_with_a_path_outside_its_directory_is_refused(pack: Pack, name: str, tmp_path: Path) -> None:
    refused(pack({name: b"x", "movies.csv": b""}), tmp_path, names=("outside",))


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    refused(tarred({"ratings.csv": None}), tmp_path, names=("ratings.csv", "link"))  # type: ignore[dict-item]
    link = zipfile.ZipInfo("ratings.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "given", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused((tmp_path / "given").read_bytes(), tmp_path, names=("ratings.csv", "link"))


@pytest.mark.parametrize("name", ["ratings.csv", "skipped.bin"])
def test_a_bomb_is_refused_before_it_fills_the_disk(name: str, tmp_path: Path) -> None:
    ones = b"1" * 3 * 10**6
    refused(tarred({name: ones, "movies.csv": b""}), tmp_path, names=("1 MB",))
    if name == "ratings.csv":  # what is skipped in a zip costs nothing
        refused(zipped({name: ones}), tmp_path, names=("1 MB",))
        (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(ones))
        with pytest.raises(UserError, match="1 MB"):
            unpack(tmp_path / "bomb.csv.gz", tmp_path / "out2", PATTERNS, 10**6)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.csv")) <= 3 * 10**6


def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    content = {"ratings.csv": bytes(range(256)) * 100}
    broken = bytearray(zipped(content))
    broken[60:70] = b"\xff" * 10
    for damaged in (bytes(broken), tarred(content)[:-30], gzip.compress(b"a" * 1000)[:-9]):
        refused(damaged, tmp_path)
        for file in (tmp_path / "out").glob("*"):
            file.unlink()
    refused(b"7z\xbc\xaf\x27\x1c...", tmp_path, names=("7z x",))


@both
def test_an_archive_without_the_files_is_refused_with_their_names(pack: Pack, tmp_path: Path) -> None:
    refused(pack({"other.csv": b""}), tmp_path, names=PATTERNS)
