"""Files that appear complete or not at all, plain data read back, and one lock. Imports torch only where it must."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from recbole_sigma.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    Raises UserError when the disk refuses; the old file is untouched then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask allows; safetensors makes files that only the owner reads
        write(partial)
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the directory may be missing, too
            partial.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def json_text(content: Any) -> str:
    """JSON with two spaces of indentation. Raises ValueError for NaN."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that holds a `kind` (dict, list). Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also for bytes that are not UTF-8
        raise UserError(f"{path}: not a JSON file: {one_line(error)}") from None
    if not isinstance(content, kind):
        raise UserError(f"{path}: holds no {kind.__name__}")
    return content


def weights_digest(path: Path) -> str:
    """The SHA-256 of the tensors of a .safetensors file, as it says itself. Raises UserError for any other file."""
    try:
        path.open("rb").close()  # safe_open says of any error that there is no such file
        with safe_open(path, framework="np") as file:
            return str((file.metadata() or {})["sha256"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: not the weights of a run: {one_line(error)}") from None


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV of rows by column name, columns in the order in which they first appear; a missing value is empty."""
    import pandas as pd

    return str(pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n"))


@contextlib.contextmanager
def locked(directory: Path, wait: bool) -> Iterator[bool]:
    """Hold the exclusive lock of a directory; the system releases it when the process ends, however it ends.

    With `wait`, blocks until the lock is free; without, yields False at once if another process holds it. A file system
    without locks is reported once and treated as unlocked.
    """
    if fcntl is None:
        logger.warning("%s: no locks on this system; do not start a run twice", directory)
        yield True
        return
    handle = os.open(directory, os.O_RDONLY)
    held = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        held = False
    except OSError as error:
        logger.warning("%s: no locks on this file system (%s); do not start a run twice", directory, error.strerror)
    try:
        yield held
    finally:
        os.close(handle)


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values, nested in lists, tuples and dicts."""
    import torch

    sha = hashlib.sha256()

    def add(each: Any) -> None:
        if isinstance(each, torch.Tensor):
            flat = each.detach().cpu().contiguous()
            sha.update(f"tensor {flat.dtype} {tuple(flat.shape)}".encode())
            sha.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
        elif isinstance(each, Mapping):
            add([part for pair in each.items() for part in pair])
        elif isinstance(each, (list, tuple)):
            sha.update(f"list {len(each)}".encode())
            for part in each:
                add(part)
        else:
            sha.update(f"{type(each).__name__} {each!r};".encode())

    add(value)
    return sha.hexdigest()
