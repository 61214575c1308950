"""A data set by its name: from its publisher, or from a file that was fetched by hand."""

import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from recbole_sigma.convert.archive import unpack
from recbole_sigma.convert.catalogue import Entry, Origin, entries
from recbole_sigma.convert.formats import Summary
from recbole_sigma.errors import Interrupted, UserError, did_you_mean
from recbole_sigma.runs.files import json_text, locked, read_json, write_text

logger = logging.getLogger(__name__)

RECORD = "source.json"  # beside NAME.inter: where it came from
PATIENCE = 20.0  # seconds without an answer, for all addresses together
LARGE = 10**9  # bytes of a download that has to be allowed
GROWTH, MIN_ARCHIVE = 50, 10**6  # an archive's files have at most so many times its size; bytes


def is_present(name: str, data_path: Path) -> bool:
    """Whether a data set has a directory; of a known one, with more in it than the record of files since deleted."""
    try:
        content = [path.name for path in (data_path / name).iterdir() if path.name != RECORD]
    except OSError as error:  # what cannot be read is reported by whoever reads it
        return isinstance(error, PermissionError)
    return bool(content) or name not in entries()


def find(name: str, data_path: Path) -> Entry:
    """The data set of that name. Raises UserError with the nearest name, known or in `data_path`."""
    if name not in entries():
        present = [path.name for path in data_path.iterdir() if path.is_dir()] if data_path.is_dir() else []
        hint = (
            did_you_mean(name, [*present, *entries()], same_numbers=True)
            or "; set --data_path to the directory of data sets"
        )
        raise UserError(f"unknown data set {name!r}: there is no directory {str(data_path / name)!r}{hint}")
    return entries()[name]


def check_download(name: str, data_path: Path, download: bool | None) -> None:
    """Raise a UserError unless the data set is known and may be downloaded."""
    entry = find(name, data_path)
    origins = [origin for origin in entry.origins if origin.url]
    if not origins:
        reason = "its publisher gives it out by hand"
    elif download is False:
        reason = "download is false"
    elif origins[0].megabytes * 1e6 > LARGE and not download:
        reason = f"its download has {origins[0].megabytes / 1e3:.1f} GB, which --download=true allows"
    else:
        return
    raise UserError(f"data set {name!r} is not in {data_path}; {reason}; {_by_hand(entry, data_path)}")


def get(name: str, data_path: Path, download: bool | None = None, given: str = "") -> tuple[Path, Summary | None]:
    """Make the directory of a data set unless it is there, and compare its statistics with those of the papers.

    A second process that wants the same data set waits for the first.

    Args:
        download: False never touches the network; more than 1 GB needs True.
        given: a file, directory or address to use instead of the publisher's.

    Returns the directory, and the statistics of what was converted: None for a data set that was there.
    Raises UserError with what happened and what to do by hand; Interrupted for Ctrl-C.
    """
    remote, folder = "://" in given, (data_path / name).resolve()  # a symbolic link stays one
    if is_present(name, data_path):
        return data_path / name, None
    if not given or (remote and download is False):
        check_download(name, data_path, download)
    entry = find(name, data_path)
    try:
        with _work_directory(folder) as work:
            if is_present(name, data_path):  # another process has made it meanwhile
                return data_path / name, None
            if given and not remote:
                file = Path(os.path.expanduser(given))  # noqa: PTH111 - ~/ is not expanded by the shell after --from=
                summary, record = _convert(entry, entry.origins, file, work, file.name)
            else:
                summary, record = _from_network(entry, data_path, work, given, None if download else LARGE)
            write_text(work / name / RECORD, json_text(record))
            (folder / RECORD).unlink(missing_ok=True)
            (work / name).rename(folder)
    except OSError as error:
        what = f"{error.filename or data_path}: {error.strerror or error}"
        raise UserError(f"data set {name!r}: {what}; {_by_hand(entry, data_path)}") from None
    except KeyboardInterrupt:
        raise Interrupted(folder, "the same command") from None
    if summary:
        _compare(entry, summary)
    return data_path / name, summary


@contextmanager
def _work_directory(folder: Path) -> Iterator[Path]:
    """`.NAME.download` beside the data set's directory, for one process at a time.

    It is deleted in the end; after an error not if it has the beginning of a download, which the same command resumes.
    """
    work = folder.parent / f".{folder.name}.download"
    with ExitStack() as lock:
        while True:
            work.mkdir(parents=True, exist_ok=True)
            try:
                number = work.stat().st_ino
                if not lock.enter_context(locked(work, wait=False)):
                    print(f"waiting for another process that makes {folder}", file=sys.stderr)
                    lock.enter_context(locked(work, wait=True))
                if work.stat().st_ino == number:
                    break
            except FileNotFoundError:  # the other process has deleted it
                pass
            lock.close()
        keep = True
        try:
            yield work
            keep = False
        finally:
            if not (keep and any(part.stat().st_size for part in work.glob("*/*.part"))):
                shutil.rmtree(work, ignore_errors=True)


def _from_network(
    entry: Entry, data_path: Path, work: Path, address: str, largest: int | None
) -> tuple[Summary | None, dict[str, Any]]:
    """From `address`, else the first of the entry's that works. Raises UserError with the problem of each."""
    from recbole_sigma.convert.download import download  # imports requests

    problems: dict[str, None] = {}
    origins = [Origin(entry.origins[0].interactions, url=address)] if address else entry.origins
    origins = [origin for origin in origins if origin.url]
    for origin in origins:
        size = f", about {origin.megabytes:,} MB" if origin.megabytes else ""
        host, to = origin.url.split("/")[2].rpartition("@")[2], data_path / entry.name
        print(f"{entry.name} ({entry.title}): downloading from {host}{size}, to {to}", file=sys.stderr)
        folder = work / hashlib.sha256(origin.url.encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        sha256 = origin.sha256 or _recorded_sha256(to, origin.url)
        try:
            file = download(origin.url, folder, patience=PATIENCE / len(origins), largest=largest, sha256=sha256)
            return _convert(entry, entry.origins if address else [origin], file, work, _without_password(origin.url))
        except UserError as error:
            accept = f" Delete {RECORD} to accept it." if "SHA256" in str(error) else ""
            problems[f"{host}: {error}{accept}"] = None
            for file in folder.iterdir():  # what is not of use would be used again
                if file.suffix not in (".part", ".version"):
                    file.unlink()
    raise UserError(f"data set {entry.name!r}: {'; '.join(problems)}; {_by_hand(entry, data_path)}")


def _convert(
    entry: Entry, origins: Sequence[Origin], file: Path, work: Path, source: str
) -> tuple[Summary | None, dict[str, Any]]:
    """Make `work/NAME` of a file or directory in the form of one of `origins`; returns statistics and record."""
    from recbole_sigma.convert import convert  # imports pyarrow

    record: dict[str, Any] = {"name": entry.name, "source": source}
    size = 0
    if file.is_file():
        with file.open("rb") as content:
            sha256, size = hashlib.file_digest(content, "sha256").hexdigest(), file.stat().st_size
        record |= {"bytes": size, "sha256": sha256}
    problems: dict[str, None] = {}
    for origin in origins:
        for left in (work / "files", work / entry.name):  # by another origin, or a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            files = unpack(file, work / "files", origin.patterns, max(size, MIN_ARCHIVE) * GROWTH)
            break
        except UserError as error:
            problems[str(error)] = None
    else:
        raise UserError("; ".join(problems))
    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    if entry.filters is None:
        _keep(files, work / entry.name)
        return None, record
    paths = _fitting(files, origin.interactions.paths) or tuple(files)
    items = origin.items and replace(origin.items, paths=_fitting(files, origin.items.paths))
    form = replace(origin.interactions, paths=paths)
    summary = convert(form, work / entry.name, entry.filters, items if items and items.paths else None)
    return summary, record | {"filters": asdict(entry.filters), **statistics(summary)}


def _fitting(files: Sequence[Path], patterns: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(file for file in files if any(fnmatchcase(file.name, str(pattern)) for pattern in patterns))


def _keep(files: Sequence[Path], out: Path) -> None:
    """Take RecBole's files over as they are, under the name of the data set: what is before the first dot changes."""
    out.mkdir()
    for file in files:
        shutil.copyfile(file, out / f"{out.name}.{file.name.partition('.')[2]}")
    if not (out / f"{out.name}.inter").is_file():
        raise UserError(f"no file has all interactions, only {', '.join(file.name for file in files)}")


def statistics(summary: Summary) -> dict[str, int]:
    """Users, items and interactions, by these names."""
    return {"users": summary.users, "items": summary.items, "interactions": summary.interactions}


def _recorded_sha256(folder: Path, source: str) -> str | None:
    """The SHA-256 of what came from the same address, where the files were deleted since and the record was not."""
    record = read_json(folder / RECORD, dict) if (folder / RECORD).is_file() else {}
    return record.get("sha256") if record.get("source") == _without_password(source) else None


def _without_password(url: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _compare(entry: Entry, summary: Summary) -> None:
    """Warn of numbers that are not those of the papers, and of lines that could not be read."""
    if summary.bad_lines:
        logger.warning("warning: %d lines cannot be read, the first: %s", summary.bad_lines, summary.first_bad[0])
    got, expected = statistics(summary), entry.expected or {}
    if different := [key for key, number in expected.items() if got[key] != number]:
        numbers = ", ".join(f"{got[key]:,} {key} where the papers have {expected[key]:,}" for key in different)
        logger.warning("warning: %s: %s. %s", entry.name, numbers, entry.note)


def _by_hand(entry: Entry, data_path: Path) -> str:
    address = next((origin.url for origin in entry.origins), "") or entry.page
    option = "" if data_path == Path("dataset") else f" --data_path={data_path}"
    return f"get {address} by hand, then: recbole-sigma datasets get {entry.name} --from=FILE{option}"
