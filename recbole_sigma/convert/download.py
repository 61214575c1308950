"""One file by HTTP, with pooch: resumed, retried, checked, and everything that can go wrong as one sentence."""

import errno
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pooch
import requests
import urllib3
from tqdm import tqdm

from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs.files import write_text

TRIES = 3  # without a new byte
PAUSE = 1.0  # seconds before the first of them is repeated
_BLOCK = 2**16  # bytes
_WEB_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body)", re.IGNORECASE)
_NOT_THE_FILE = "it answers with a web page and not with the file (the login page of the network?)"
_BROKEN = (
    requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError,
    TimeoutError,
)  # fmt: skip


class DownloadError(UserError):
    """An address did not give the file: what happened, in a few words, without the address."""


class _RetryError(Exception):
    """A failure that may have passed in a second."""


def download(url: str, folder: Path, *, patience: float, largest: int | None = None, sha256: str | None = None) -> Path:
    """The file at `url`, in `folder`; one that is there already is used if its SHA-256 is right or not known.

    What was received before a failure or Ctrl-C stays in `folder` as NAME.part, and is resumed from if the server says
    that its file is still the same.

    Args:
        patience: seconds without a new byte after which the address is given up.
        largest: bytes above which the file is refused.

    Raises DownloadError, and OSError for a disk that is full or cannot be written.
    """
    name = re.sub(r"[^\w.-]+", "_", unquote(url.partition("?")[0]).rpartition("/")[2]).lstrip(".")[-100:] or "download"
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = _Downloader(folder / f"{name}.part", patience, largest)
    try:
        return Path(pooch.retrieve(url, sha256, name, folder, downloader=downloader))
    except ValueError as error:  # another SHA-256
        raise DownloadError(one_line(error)) from None


class _Downloader:
    """What pooch calls to fill its temporary file."""

    def __init__(self, part: Path, patience: float, largest: int | None) -> None:
        self._part, self._patience, self._largest = part, patience, largest
        self._version = part.with_suffix(".version")  # whose first bytes `part` holds: address and the server's mark

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        failures, self._furthest, self._alive = 0, 0, time.monotonic()
        while True:
            furthest = self._furthest
            try:
                self._receive(url, max(self._alive + self._patience - time.monotonic(), 1))
                break
            except (*_BROKEN, _RetryError) as error:
                failures = 1 if self._furthest > furthest else failures + 1
                if failures == TRIES or time.monotonic() > self._alive + self._patience:
                    raise DownloadError(_reason(error)) from None
            except requests.RequestException as error:  # not an address, too many redirects
                raise DownloadError(_reason(error)) from None
            except OSError:  # of the disk
                self._forget()
                raise
            time.sleep(PAUSE * failures)
        self._part.replace(output_file)
        self._version.unlink(missing_ok=True)

    def _receive(self, url: str, seconds: float) -> None:
        """One request, for what is missing. Raises _RetryError, one of _BROKEN, DownloadError or OSError."""
        size, mark = self._resumable(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "recbole-sigma"}
        if size:
            headers |= {"Range": f"bytes={size}-", "If-Range": mark}
        wait = (seconds, self._patience / 2)  # to connect, and for the next bytes
        with _within(seconds, lambda: requests.get(url, headers=headers, stream=True, timeout=wait)) as answer:
            resumed = answer.status_code == 206
            fits = answer.headers.get("Content-Range", "").startswith(f"bytes {size}-")
            if answer.status_code == 416 or (resumed and not fits):
                self._forget()
                raise _RetryError("the server cannot resume the download")
            if not answer.ok:
                status = f"HTTP {answer.status_code} {answer.reason}"
                passing = answer.status_code in (408, 429) or answer.status_code >= 500
                raise _RetryError(status) if passing else DownloadError(status)
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise DownloadError(_NOT_THE_FILE)
            if not resumed:
                size, mark = 0, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                self._part.write_bytes(b"")
                write_text(self._version, f"{url}\n{'' if mark.startswith('W/') else mark}")
            self._save(answer, size)

    def _save(self, answer: requests.Response, size: int) -> None:
        """Append the answer to the `size` bytes that are there."""
        length = answer.headers.get("Content-Length", "")
        total = size + int(length) if length.isdecimal() else None
        self._check_size(total or 0)
        missing, free = (total or size) - size, shutil.disk_usage(self._part.parent).free
        if missing > free:
            full = f"{os.strerror(errno.ENOSPC)}: {missing / 1e6:,.0f} MB are missing, {free / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, full)
        bar = tqdm(total=total, initial=size, unit="B", unit_scale=True, ncols=100, disable=None, desc=self._part.stem)
        with self._part.open("ab" if size else "wb") as file, bar:
            for block in answer.raw.stream(_BLOCK, decode_content=False):
                if not size and _WEB_PAGE.match(block):
                    self._forget()
                    raise DownloadError(_NOT_THE_FILE)
                file.write(block)
                size += len(block)
                self._check_size(size)
                if size > self._furthest:
                    self._furthest, self._alive = size, time.monotonic()
                bar.update(len(block))
        if total is not None and size != total:
            raise _RetryError(f"the connection broke after {size:,} of {total:,} bytes")

    def _resumable(self, url: str) -> tuple[int, str]:
        """How many bytes are there, and the server's mark of the version that they belong to; (0, "") to start."""
        try:
            address, _, mark = self._version.read_text(encoding="utf-8").partition("\n")
            return (self._part.stat().st_size, mark) if address == url and mark else (0, "")
        except (OSError, UnicodeDecodeError):
            return 0, ""

    def _check_size(self, size: int) -> None:
        if self._largest is not None and size > self._largest:
            self._forget()
            raise DownloadError(f"more than {self._largest / 1e9:.0f} GB; --download=true allows it")

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _within(seconds: float, call: Callable[[], requests.Response]) -> requests.Response:
    """The result of `call`, which a thread may never finish: looking up a name has no time limit of its own."""
    future: Future[requests.Response] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)


def _reason(error: BaseException) -> str:
    """The innermost reason of an error of requests, without the names of its objects."""
    inner = [each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)]
    text = re.sub(r"^<?[\w.]*Connection[\w.]*\(.*?\)>?: ", "", one_line(error))
    return _reason(inner[0]) if inner else text or "no answer in time"
