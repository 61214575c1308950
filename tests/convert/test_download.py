"""Downloads from a real server on the loopback address: what arrives, what is resumed, what each failure says."""

import hashlib
import socket
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.file_server import Server, serving

from recbole_sigma.convert import download as module
from recbole_sigma.convert.download import DownloadError, download

BODY = bytes(range(256)) * 2000  # 512,000 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
BEGUN = ("x.part", "x.version")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as each:
        yield each


def fails(url: str, folder: Path, *named: str, left: tuple[str, ...] = (), **options: object) -> None:
    """A short sentence that holds `named`; of files only `left` stay."""
    with pytest.raises(DownloadError) as caught:
        download(url, folder, **{"patience": 2.0, **options})  # type: ignore[arg-type]
    assert all(each in str(caught.value) for each in named) and len(str(caught.value)) < 350, caught.value
    assert {path.name for path in folder.iterdir()} == {*left}


def test_a_file_arrives_as_the_server_has_it_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    url = server.put("/a/data%20set.gz?x=1", BODY, headers={"Content-Encoding": "gzip"})
    for sha256 in (None, SHA256):
        file = download(url, tmp_path, patience=5, sha256=sha256)
        assert (file.name, file.read_bytes(), [*tmp_path.iterdir()]) == ("data_set.gz", BODY, [file])
    assert len(server.requests) == 1  # the second call found the file


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed_where_the_server_can(ranges: bool, server: Server, tmp_path: Path) -> None:
    url = server.put("/x", BODY, headers={"ETag": '"1"'}, cuts=[100_000, 200_000], ranges=ranges)
    assert download(url, tmp_path, patience=5).read_bytes() == BODY
    first, second, third = (int(wanted[6:-1]) if wanted else 0 for _, wanted in server.requests)
    assert first == 0 < second <= 100_000 and second < third


@pytest.mark.parametrize("path, tag, resumes", [("x", '"1"', 1), ("x", '"2"', 1), ("x", 'W/"1"', 0), ("2/x", '"1"', 0)])
def test_a_later_call_resumes_only_the_same_version_of_the_same_address(
    path: str, tag: str, resumes: int, server: Server, tmp_path: Path
) -> None:
    old = server.put("/x", BODY, headers={"ETag": tag.replace("2", "1")}, cuts=[100_000] * 3, ranges=False)
    fails(old, tmp_path, "100000", left=BEGUN)
    server.requests.clear()
    new = BODY if (path, tag) == ("x", '"1"') else BODY[::-1]
    assert download(server.put(f"/{path}", new, headers={"ETag": tag}), tmp_path, patience=5).read_bytes() == new
    assert (server.requests[0][1] is not None) == bool(resumes)


def test_a_refusal_is_final_and_a_busy_server_is_asked_some_times(server: Server, tmp_path: Path) -> None:
    for status in (403, 404, 410):
        fails(server.put("/x", b"no", status=status), tmp_path, f"HTTP {status}")
    assert len(server.requests) == 3
    fails(server.put("/x", BODY, failures=99), tmp_path, "HTTP 503")
    assert len(server.requests) == 3 + module.TRIES
    assert download(server.put("/x", BODY, failures=2), tmp_path, patience=5).read_bytes() == BODY


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_a_web_page_is_not_taken_for_the_file(kind: str, server: Server, tmp_path: Path) -> None:
    login = server.put("/login", b"\n<!DOCTYPE HTML><title>Log in</title>", headers={"Content-Type": kind})
    fails(server.put("/x.zip", status=302, headers={"Location": login}), tmp_path, "web page")


def test_a_redirect_is_followed_and_an_endless_one_refused(server: Server, tmp_path: Path) -> None:
    fails(server.put("/z", status=302, headers={"Location": "/z"}), tmp_path, "redirects")
    fails("httq://x/y", tmp_path, "httq")
    url = server.put("/x", status=301, headers={"Location": server.put("/y", BODY)})
    assert download(url, tmp_path, patience=5).read_bytes() == BODY


def test_a_wrong_size_and_a_wrong_sha256_are_errors_with_both_numbers(server: Server, tmp_path: Path) -> None:
    fails(server.put("/y", BODY), tmp_path, "0" * 64, SHA256, sha256="0" * 64)
    for length in (str(len(BODY)), ""):  # "": a server that does not say how long its file is
        url = server.put("/x", BODY, headers={"Content-Length": length})
        fails(url, tmp_path, "--download=true", largest=300_000)
    fails(server.put("/x", BODY, headers={"Content-Length": "512005"}), tmp_path, "512000", "5", left=BEGUN)


def test_a_full_disk_is_an_oserror_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.part").symlink_to("/dev/full")
    for text in ("No space left", r"No space left.*1 MB"):  # the second: before anything is written
        with pytest.raises(OSError, match=text):
            download(server.put("/x", BODY), tmp_path, patience=5)
        assert [*tmp_path.iterdir()] == []
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(1000))


def test_no_server_no_host_and_no_answer_end_in_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        fails(f"http://127.0.0.1:{free.getsockname()[1]}/x", tmp_path, "refused")
    fails("http://no-such-host.invalid/x", tmp_path, "no-such-host.invalid")
    fails(server.put("/x", BODY, seconds=5), tmp_path, patience=0.5)
    monkeypatch.setattr(module.requests, "get", lambda *_, **__: time.sleep(5))  # a look-up without end
    fails("http://slow.invalid/x", tmp_path, "no answer", patience=0.5)
    assert time.monotonic() - started < 10


def test_a_proxy_is_used_where_the_environment_names_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.put("", BODY))
    server.put("http://far.invalid/x", BODY)
    assert download("http://far.invalid/x", tmp_path, patience=5).read_bytes() == BODY
