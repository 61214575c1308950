"""A real HTTP server on the loopback address, whose answers a test decides, and small archives for it."""

import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What is sent for a path."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # after so many bytes the first, second ... answer breaks off
    failures: int = 0  # so many answers are 503 first
    seconds: float = 0  # of silence before the answer


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and Range

    def put(self, path: str, *args: object, **kwargs: object) -> str:
        """Answer `path` so from now on; returns its address."""
        self.answers[path] = Answer(*args, **kwargs)  # type: ignore[arg-type]
        return self.address + path


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        answer = self.server.answers.get(self.path, Answer(status=404))
        time.sleep(answer.seconds)
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        if answer.failures:
            answer.failures, status, body = answer.failures - 1, 503, b""
        if wanted and answer.ranges and self.headers.get("If-Range") == headers.get("ETag"):
            start = int(wanted[len("bytes=") : -1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # the client may have heard enough
            self.wfile.write(body[: answer.cuts.pop(0)] if answer.cuts else body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def zipped(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()
