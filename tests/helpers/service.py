"""`recbole-sigma serve` as a process of its own, and a browser that looks at it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.runs import environment, options

KEY = "a-key-of-the-tests"


class Service:
    """A process that serves; `client` sends the key."""

    def __init__(self, checkpoint: Path, **settings: Any) -> None:
        arguments = options(checkpoint=checkpoint, port=0, use_gpu=False, **settings)
        command = [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", "serve", *arguments]
        environ = {**environment(), "RECBOLE_SIGMA_API_KEY": KEY}
        self.process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert "http://" in self.line, self.process.communicate()
        self.address = self.line.split()[-1]
        self.client = httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def stop(self, number: int) -> tuple[int, str]:
        """Exit status and standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def stop_while_answering(self, body: Any) -> None:
        """SIGTERM while four requests are being answered: they are, and the exit status is 0."""
        content, connections = json.dumps(body).encode(), [self.connect() for _ in range(4)]
        head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: "
        for each in connections:
            each.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert each.recv(10_000).startswith(b"HTTP/1.1 200")
        for each in connections:
            each.sendall(f"POST /recommend HTTP/1.1\r\n{head}{len(content)}\r\n\r\n".encode() + content)
        self.client.get("/health")  # so that the requests have arrived
        self.process.send_signal(signal.SIGTERM)
        for each in connections:
            assert b'"results"' in b"".join(iter(lambda: each.recv(100_000), b""))  # noqa: B023
            each.close()
        assert self.process.wait(timeout=60) == 0

    def connect(self) -> socket.socket:
        """A bare connection."""
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)


@contextmanager
def serving(checkpoint: Path, **settings: Any) -> Iterator[Service]:
    """A Service that is killed at the end, if it still runs."""
    service = Service(checkpoint, **settings)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()


class Browser:
    """Headless Chromium by WebDriver's protocol."""

    def __init__(self, address: str) -> None:
        browser, argument = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu"]}, "goog:chromeOptions"
        self._client = httpx.Client(base_url=address, timeout=60)
        session = self._ask("/session", {"capabilities": {"alwaysMatch": {argument: browser}}})
        self._path = f"/session/{session['sessionId']}"

    def _ask(self, path: str, content: Any) -> Any:
        answer = self._client.post(path, json=content)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def open(self, address: str) -> None:
        self._ask(f"{self._path}/url", {"url": address})

    def run(self, script: str) -> Any:
        """What `script`, the body of a function, returns."""
        return self._ask(f"{self._path}/execute/sync", {"script": script, "args": []})

    def wait(self, script: str) -> Any:
        """What `script` returns when it is true."""
        for _ in range(200):
            if result := self.run(script):
                return result
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}\n{self.run('return document.body.innerText')}")

    def close(self) -> None:
        self._client.delete(self._path)


@pytest.fixture
def browser() -> Iterator[Browser]:
    if shutil.which("chromedriver") is None or shutil.which("chromium") is None:
        pytest.skip("needs chromium and chromedriver")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        browser = Browser(f"http://127.0.0.1:{port}")
        yield browser
        browser.close()
    finally:
        driver.terminate()
        driver.wait()
