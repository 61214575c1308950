"""Downloads from a real server on the loopback address: what arrives, what is resumed, what each failure says."""

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.file_server import Server, serving

from recbole_sigma.convert import download as module
from recbole_sigma.convert.download import DownloadError, download

BODY = bytes(range(256)) * 2000  # 512,000 bytes
TAG = {"ETag": '"1"'}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as each:
        yield each


def fails(url: str, folder: Path, *named: str, left: tuple[str, ...] = (), **options: object) -> None:
    """One short sentence that holds `named`; of files only `left` stay."""
    with pytest.raises(DownloadError) as caught:
        download(url, folder, **{"patience": 2.0, **options})  # type: ignore[arg-type]
    assert all(each in str(caught.value) for each in named), caught.value
    assert len(str(caught.value)) < 350
    assert {path.name for path in folder.iterdir()} == {*left}


def test_a_file_is_downloaded_under_the_last_part_of_its_address_and_nothing_else_is_left(
    server: Server, tmp_path: Path
) -> None:
    for sha256 in (None, hashlib.sha256(BODY).hexdigest()):
        file = download(server.put("/a/data%20set.zip?x=1", BODY), tmp_path, patience=5, sha256=sha256)
        assert (file.name, file.read_bytes(), [*tmp_path.iterdir()]) == ("data_set.zip", BODY, [file])
    assert len(server.requests) == 1  # the second call found the file


def test_a_gzipped_file_arrives_as_the_server_has_it(server: Server, tmp_path: Path) -> None:
    url = server.put("/x.gz", BODY, headers={"Content-Encoding": "gzip"})
    assert download(url, tmp_path, patience=5).read_bytes() == BODY


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed_where_the_server_can(ranges: bool, server: Server, tmp_path: Path) -> None:
    url = server.put("/x", BODY, headers=TAG, cuts=[100_000, 200_000], ranges=ranges)
    assert download(url, tmp_path, patience=5).read_bytes() == BODY
    starts = [int(wanted[6:-1]) if wanted else 0 for _, wanted in server.requests]
    assert starts[0] == 0 and len(starts) == 3 and 0 < starts[1] <= 100_000 and starts[1] < starts[2]


@pytest.mark.parametrize("tag", ['"1"', '"2"', 'W/"1"'])
def test_a_later_call_resumes_the_same_version_and_starts_again_for_another(
    tag: str, server: Server, tmp_path: Path
) -> None:
    url = server.put("/x", BODY, headers={"ETag": tag.replace("2", "1")}, cuts=[100_000] * 3, ranges=False)
    fails(url, tmp_path, f"{100_000:,}".replace(",", ""), left=("x.part", "x.version"))
    server.requests.clear()
    server.put("/x", BODY[::-1] if "2" in tag else BODY, headers={"ETag": tag})
    assert download(url, tmp_path, patience=5).read_bytes() == server.answers["/x"].body
    assert (server.requests[0][1] is None) == tag.startswith("W/")


def test_a_part_of_another_address_is_not_resumed(server: Server, tmp_path: Path) -> None:
    fails(
        server.put("/a/x", BODY, headers=TAG, cuts=[99_000] * 3, ranges=False), tmp_path, left=("x.part", "x.version")
    )
    assert download(server.put("/b/x", BODY[::-1], headers=TAG), tmp_path, patience=5).read_bytes() == BODY[::-1]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_repeated(status: int, server: Server, tmp_path: Path) -> None:
    fails(server.put("/x", b"no", status=status), tmp_path, f"HTTP {status}")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_and_given_up_after_some_tries(server: Server, tmp_path: Path) -> None:
    assert download(server.put("/x", BODY, failures=2), tmp_path, patience=5).read_bytes() == BODY
    fails(server.put("/y", BODY, failures=99), tmp_path, "HTTP 503", left=("x",))
    assert len(server.requests) == 3 + module.TRIES


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_a_web_page_is_not_taken_for_the_file(kind: str, server: Server, tmp_path: Path) -> None:
    page = b"\n<!DOCTYPE HTML><title>Log in</title>"
    login = server.put("/login", page, headers={"Content-Type": kind})
    fails(server.put("/x.zip", status=302, headers={"Location": login}), tmp_path, "web page")


def test_a_redirect_is_followed_and_an_endless_one_refused(server: Server, tmp_path: Path) -> None:
    url = server.put("/x", status=301, headers={"Location": server.put("/y", BODY)})
    assert download(url, tmp_path, patience=5).read_bytes() == BODY
    fails(server.put("/z", status=302, headers={"Location": "/z"}), tmp_path, "redirects", left=("x",))
    fails("httq://x/y", tmp_path, "httq", left=("x",))


def test_a_size_that_never_comes_is_an_error_with_both_sizes(server: Server, tmp_path: Path) -> None:
    url = server.put("/x", BODY, headers={"Content-Length": str(len(BODY) + 5)})
    fails(url, tmp_path, "512000", "5", left=("x.part", "x.version"))


def test_another_sha256_is_an_error_with_both_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    fails(server.put("/x", BODY), tmp_path, "0" * 64, hashlib.sha256(BODY).hexdigest(), sha256="0" * 64)


def test_more_bytes_than_allowed_are_refused_with_and_without_a_size(server: Server, tmp_path: Path) -> None:
    fails(server.put("/x", BODY), tmp_path, "--download=true", largest=300_000)
    fails(server.put("/x", BODY, headers={"Content-Length": ""}), tmp_path, "--download=true", largest=300_000)


def test_a_full_disk_is_an_oserror_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.put("/x", BODY)
    (tmp_path / "x.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download(url, tmp_path, patience=5)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: module.shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(OSError, match=r"No space left.*1 MB"):  # before anything is written
        download(url, tmp_path, patience=5)
    assert [*tmp_path.iterdir()] == []


def test_no_server_no_answer_and_no_such_host_end_in_time(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    started = time.monotonic()
    fails(closed, tmp_path, "refused")
    fails("http://no-such-host.invalid/x", tmp_path, "no-such-host.invalid")
    fails(server.put("/x", BODY, seconds=5), tmp_path, patience=0.5)
    assert time.monotonic() - started < 8


def test_a_name_that_is_looked_up_for_ever_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.requests, "get", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    fails("http://slow.invalid/x", tmp_path, "no answer", patience=0.5)
    assert time.monotonic() - started < 4


def test_a_proxy_is_used_where_the_environment_names_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.put("", BODY))
    server.put("http://far.invalid/x", BODY)
    assert download("http://far.invalid/x", tmp_path, patience=5).read_bytes() == BODY
    assert re.fullmatch(r"http://far\.invalid/x", server.requests[0][0])
