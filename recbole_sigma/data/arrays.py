"""Long arrays: in memory, or in memory-mapped files where a data set may need more memory than there is."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import json_text, locked, read_json, write_text

_ROWS = 1 << 22  # that are worked on at once
_MOST_PARTS = 16  # of the rows that are sorted part by part
_MANIFEST = "columns.json"

# By name: numbers, or codes (-1: missing) and the texts that the codes 0, 1, 2 ... mean.
Columns = dict[str, tuple[np.ndarray, list[str] | None]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """Where long arrays are: in memory, or in files of `folder`."""

    folder: Path | None = None

    def empty(self, n: int, dtype: Any, name: str | None = None) -> np.ndarray:
        """An array of n numbers. A file without a `name` disappears with the process. UserError for a full disk."""
        dtype = np.dtype(dtype)
        if self.folder is None or not n or dtype.hasobject:
            return np.empty(n, dtype)
        with (
            _writing(self.folder),
            (self.folder / name).open("wb+") if name else tempfile.TemporaryFile(dir=self.folder) as file,
        ):
            if hasattr(os, "posix_fallocate"):  # a disk that is full is noticed here, and not by a bus error later
                os.posix_fallocate(file.fileno(), 0, n * dtype.itemsize)
            return np.asarray(np.memmap(file, dtype, "w+", shape=(n,)))

    def take(self, values: np.ndarray, rows: np.ndarray | None = None, dtype: Any = None) -> np.ndarray:
        """`values[rows]`, or all values, as another type."""
        taken = self.empty(len(values if rows is None else rows), dtype or values.dtype)
        for block in blocks(len(taken)):
            taken[block] = values[block if rows is None else rows[block]]
        return taken

    def order(self, users: np.ndarray, user_start: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        """The stable order by (user, last of `keys`, ..., first of `keys`), made for some users after the other.

        `users` and each key are (n,), `user_start` is (users + 1,).
        """
        n = len(users)
        order = self.empty(n, np.int32 if n < 2**31 else np.int64)
        parts = min(-(-n // _ROWS), _MOST_PARTS)
        edges = np.unique(np.searchsorted(user_start, np.linspace(0, n, parts + 1).astype(np.int64)))
        for first, end in pairwise(edges):
            rows = np.flatnonzero((users >= first) & (users < end))
            order[user_start[first] : user_start[end]] = rows[_sorted(users[rows], [key[rows] for key in keys])]
        return order


def cache_folder(files: Sequence[Path], megabytes: float) -> Path | None:
    """Where the columns of `files` are kept if these have more than so many MB: in the user's directory for caches."""
    if sum(file.stat().st_size for file in files) <= megabytes * 1e6:
        return None
    import platformdirs

    folder = platformdirs.user_cache_path("recbole-sigma") / "columns"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def blocks(n: int) -> Iterator[slice]:
    """`range(n)` in pieces of a bounded size."""
    return (slice(first, min(first + _ROWS, n)) for first in range(0, n, _ROWS))


def count(ids: np.ndarray, n_ids: int) -> np.ndarray:
    """How often each id appears: (n,) -> (n_ids,) int64."""
    return sum((np.bincount(ids[block], minlength=n_ids) for block in blocks(len(ids))), np.zeros(n_ids, np.int64))


def first_appearance(codes: np.ndarray, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the codes from 0 in the order of their first appearance.

    Returns the number of each code (n_codes + 1,), -1 for one that does not appear and for code -1; and the codes in
    the order of their numbers.
    """
    first = np.full(n_codes + 1, len(codes))
    for block in reversed([*blocks(len(codes))]):  # the last of several assignments counts
        first[codes[block][::-1]] = np.arange(block.start, block.stop)[::-1]
    order = np.argsort(first[:-1], kind="stable")
    order = order[: np.count_nonzero(first[:-1] < len(codes))]
    number = np.full(n_codes + 1, -1)
    number[order] = np.arange(len(order))
    return number, order


def _sorted(users: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """The stable order by (user, key); of one number for both where int64 has room, in a third of the time."""
    time = keys[0]
    if len(keys) > 1 or time.dtype != np.int64 or not len(time):
        return np.lexsort((*keys, users))
    low, first = int(time.min()), int(users.min())
    span = int(time.max()) - low + 1
    if (int(users.max()) - first + 1) * span >= 2**63:
        return np.lexsort((time, users))
    return np.argsort((users - first) * np.int64(span) + (time - low), kind="stable")


def cached(folder: Path, read: Callable[[Storage], Columns]) -> Columns:
    """The columns that `read` has made once, memory-mapped from the files of `folder`.

    A folder that is incomplete or damaged is filled again; a second process waits for the first. Raises UserError where
    the folder cannot be written, and what `read` raises.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            if (folder / _MANIFEST).exists():
                try:
                    return _open(folder)
                except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
                    logger.warning("%s: damaged, and made again", folder)
            for file in folder.iterdir():
                file.unlink()
            try:
                columns = read(Storage(folder))
                manifest = {}
                for number, (name, (values, texts)) in enumerate(columns.items()):
                    (folder / f"{number}.txt").write_bytes("\n".join(texts or []).encode())
                    digests = [sha256_of(folder / file) for file in _files(number)]
                    manifest[name] = {"dtype": str(values.dtype), "rows": len(values), "sha256": digests}
                write_text(folder / _MANIFEST, json_text(manifest))
            except BaseException:
                for file in folder.iterdir():
                    file.unlink()
                raise
            return columns


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(number: int) -> tuple[str, str]:
    """The files of a column: `empty(..., name=str(number))`, and its texts."""
    return str(number), f"{number}.txt"


def _open(folder: Path) -> Columns:
    columns: Columns = {}
    for number, (name, about) in enumerate(read_json(folder / _MANIFEST, dict).items()):
        values, texts = (folder / file for file in _files(number))
        if [sha256_of(values), sha256_of(texts)] != about["sha256"]:
            raise ValueError(name)
        array = np.asarray(np.memmap(values, about["dtype"], "c", shape=(about["rows"],)))
        columns[name] = array, texts.read_bytes().decode().split("\n") if array.dtype == np.int32 else None
    return columns


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror or error}; files above the size "
            "memory_map_above are kept there: set XDG_CACHE_HOME to another directory, or memory_map_above higher"
        ) from None
