"""A real HTTP server on the loopback address, whose answers a test decides, and small archives for it."""

import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What is sent for a path. `cuts`: bytes after which the first, second ... answers break off."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    failures: int = 0  # so many answers are 503 first
    seconds: float = 0  # of silence before the answer


@dataclass
class Server:
    address: str
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range

    def put(self, path: str, *args: object, **kwargs: object) -> str:
        """Answer `path` so from now on; returns its address."""
        self.answers[path] = Answer(*args, **kwargs)  # type: ignore[arg-type]
        return self.address + path


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            answer = server.answers.get(self.path, Answer(status=404))
            time.sleep(answer.seconds)
            status, body, headers = answer.status, answer.body, dict(answer.headers)
            if answer.failures:
                answer.failures -= 1
                status, body = 503, b""
            same = self.headers.get("If-Range") in (None, headers.get("ETag"))
            if wanted and answer.ranges and same and status == 200:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: answer.cuts.pop(0)] if answer.cuts else body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server = Server(f"http://127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        http.shutdown()


def zipped(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred(files: Mapping[str, bytes | None]) -> bytes:
    """A .tar.gz; None is a symbolic link to /etc/passwd."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
    return content.getvalue()
