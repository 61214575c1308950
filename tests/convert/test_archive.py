"""What is unpacked, and what is refused."""

import gzip
import io
import stat
import tarfile
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


def refused(content: bytes, tmp_path: Path, *names: str, file: str = "given") -> None:
    """`unpack` raises one line that holds `names`, and nothing is outside its directory."""
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / file, tmp_path / f"out{len([*tmp_path.iterdir()])}", PATTERNS, 10**6)
    assert all(each in str(caught.value) for each in (str(tmp_path / file), *names)), caught.value
    assert all(path.name.startswith("out") or path.name == file for path in tmp_path.iterdir())


@both
def test_only_files_that_match_are_copied_whatever_their_directory_and_the_name_of_the_archive(
    pack: Pack, tmp_path: Path
) -> None:
    content = {"ml/": b"", "ml/ratings-1.csv": b"a", "ml/x/movies.csv": b"b", "ml/read.me": b"c", "._ratings.csv": b"d"}
    (tmp_path / "given").write_bytes(pack(content))
    files = unpack(tmp_path / "given", tmp_path / "out", PATTERNS, 10**5)
    assert {path.name: path.read_bytes() for path in files} == {"ratings-1.csv": b"a", "movies.csv": b"b"}
    assert sorted(files) == sorted((tmp_path / "out").iterdir())


def test_a_single_file_may_have_another_name_and_a_directory_is_searched(tmp_path: Path) -> None:
    for name, content in {"mine (1).csv": b"a", "mine (1).csv.gz": gzip.compress(b"a")}.items():
        (tmp_path / name).write_bytes(content)
        (file,) = unpack(tmp_path / name, tmp_path / "out", PATTERNS, 100)
        assert (file.name, file.read_bytes()) == ("mine (1).csv", b"a")
    assert (tmp_path / "mine (1).csv").exists()  # the user's own file stays
    (tmp_path / "ml" / "deep").mkdir(parents=True)
    for name in ("ratings.csv", "other.csv"):
        (tmp_path / "ml" / "deep" / name).touch()
    assert unpack(tmp_path / "ml", tmp_path / "out", PATTERNS, 100) == [tmp_path / "ml" / "deep" / "ratings.csv"]


@both
def test_what_a_mac_adds_is_left_out_and_two_files_of_a_name_are_refused(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(pack({"d/beauty.inter": b"a", "__MACOSX/d/._beauty.inter": b"\0\5\x16\7"}))
    (file,) = unpack(tmp_path / "given", tmp_path / "out", ["*.inter"], 10**5)
    assert file.read_bytes() == b"a"
    refused(pack({"a/movies.csv": b"a", "b/movies.csv": b"b"}), tmp_path, "two files movies.csv")


@both
@pytest.mark.parametrize("name", ["../ratings.csv", "/tmp/ratings.csv", "a/../../ratings.csv", "..\\evil"])
def test_an_archive_with_a_path_outside_its_directory_is_refused(pack: Pack, name: str, tmp_path: Path) -> None:
    refused(pack({name: b"x", "movies.csv": b""}), tmp_path, "outside")


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    for_zip, for_tar, tar = zipfile.ZipInfo("ratings.csv"), tarfile.TarInfo("ratings.csv"), io.BytesIO()
    for_zip.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zipped({for_zip: b"/etc/passwd"}), tmp_path, "ratings.csv", "link")  # type: ignore[dict-item]
    for_tar.type, for_tar.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(for_tar)
    refused(tar.getvalue(), tmp_path, "ratings.csv", "link")


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    ones = b"1" * 3 * 10**6
    for bomb in (zipped({"ratings.csv": ones}), tarred({"ratings.csv": ones}), tarred({"skipped": ones})):
        refused(bomb, tmp_path, "1 MB")
    (tmp_path / "given").unlink()
    refused(gzip.compress(ones), tmp_path, "1 MB", file="bomb.csv.gz")
    assert all(path.stat().st_size <= 10**6 for path in tmp_path.rglob("*.csv"))


def test_what_is_damaged_cannot_be_read_or_lacks_the_files_is_refused_in_one_line(tmp_path: Path) -> None:
    content = {"ratings.csv": bytes(range(256)) * 100}
    broken = bytearray(zipped(content))
    broken[60:70] = b"\xff" * 10
    for damaged in (bytes(broken), tarred(content)[:-30]):
        refused(damaged, tmp_path, "cannot be unpacked")
    refused(b"7z\xbc\xaf\x27\x1c...", tmp_path, "7z x")
    for other in (zipped({"a.csv": b""}), tarred({"a.csv": b""}), b"<html>"):
        refused(other, tmp_path, *PATTERNS)
