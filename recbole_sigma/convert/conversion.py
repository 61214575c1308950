"""convert(): raw interactions -> NAME.inter and NAME.item."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from recbole_sigma.convert.columns import find_columns, numbers
from recbole_sigma.convert.filters import kept_rows
from recbole_sigma.convert.formats import Filters, ItemSource, Source, Summary
from recbole_sigma.convert.reader import BadLines, Reader, open_source, text_array
from recbole_sigma.convert.spool import Spool
from recbole_sigma.convert.writer import write_interactions, write_items
from recbole_sigma.errors import UserError

KEEP_ALL = Filters()


def convert(
    source: Source,
    out: Path,
    filters: Filters = KEEP_ALL,
    items: ItemSource | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Write `out/NAME.inter` (and NAME.item), NAME being `out.name`; they appear complete or not at all.

    Args:
        strict: refuse the first bad line instead of counting it.
        overwrite: replace the files of an `out` that is not empty.

    Raises UserError for files, columns and values that cannot be right, and for nothing left.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - a symbolic link keeps its name
    _check(source, out, filters, items, overwrite)
    readers = [open_source(source, path) for path in source.paths]
    about = [_about_items(items, path) for path in items.paths] if items else []
    return convert_readers(readers, source, out, filters, about, BadLines(strict), progress)


def _about_items(items: ItemSource, path: Path) -> tuple[Reader, dict[str, str]]:
    reader = open_source(items, path)
    columns = find_columns(items, reader.names, path)
    if not {"title", "categories"} & columns.keys():
        names = ", ".join(reader.names[:30])
        raise UserError(f"{path}: no titles or categories; give --title or --categories, among {names}")
    return reader, columns


def _check(source: Source, out: Path, filters: Filters, items: ItemSource | None, overwrite: bool) -> None:
    """Refuse what names and values show to be wrong."""
    if not source.paths:
        raise UserError("no file to convert: give at least one")
    if filters.k_core < 0:
        raise UserError(f"--k_core must be a whole number from 0, got {filters.k_core}")
    if filters.min_rating is not None and not math.isfinite(filters.min_rating):
        raise UserError(f"--min_rating must be a number, got {filters.min_rating}")
    if filters.duplicates not in ("keep", "first", "last"):
        raise UserError(f"--duplicates must be keep, first or last, got {filters.duplicates!r}")
    if out.suffix in (".inter", ".item"):
        raise UserError(f"--out must be a directory, such as dataset/{out.stem}, got {str(out)!r}")
    for path in [*source.paths, *(items.paths if items else ())]:
        for written in (out / f"{out.name}.inter", out / f"{out.name}.item"):
            if path.exists() and written.exists() and path.samefile(written):
                raise UserError(f"{path}: source and output are the same file; give another --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {str(out)!r} is a file; give a directory that does not exist")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"--out: {str(out)!r} exists and is not empty; --overwrite replaces its files, or give another")


def convert_readers(
    readers: Sequence[Reader],
    source: Source,
    out: Path,
    filters: Filters,
    about_items: list[tuple[Reader, dict[str, str]]],
    bad: BadLines,
    progress: bool,
) -> Summary:
    """As `convert`, of readers that are open, `source.paths` being their names in messages."""
    columns = [_columns(source, reader, path) for reader, path in zip(readers, source.paths, strict=True)]
    if filters.min_rating is not None and not all("rating" in each for each in columns):
        raise UserError(f"--min_rating: no column of ratings; give --rating=NAME, among {', '.join(readers[0].names)}")
    with _appearing(out) as folder:
        spool = Spool(folder, bad, source.time_format)
        size = sum(path.stat().st_size for path in source.paths if path.exists())
        with _bar(progress, total=size, unit="B", desc="reading") as bar:
            for reader, found in zip(readers, columns, strict=True):
                for block in reader.blocks([*dict.fromkeys(found.values())], bad, bar.update):
                    spool.add(block, found)
        data = spool.columns() if spool.rows else {}
        rows = kept_rows(filters, **data) if data else range(0)
        if not len(rows):
            shown = f"; bad lines: {bad.count:,}, the first: {bad.first[0]}" if bad.first else ""
            given = [f"--{name}={value}" for name, value in asdict(filters).items() if value not in (None, 0, "keep")]
            left = (
                f"no interaction is left of {spool.rows:,} with {' '.join(given)}"
                if data
                else "no interaction can be read"
            )
            raise UserError(f"{source.paths[0]}: {left}{shown}")
        with _bar(progress, total=len(rows), unit=" rows", desc="writing") as bar:
            kept = write_interactions(folder / f"{out.name}.inter", spool, data, rows, bar.update)
        notes = _notes(columns, spool, readers)
        if about_items:
            tokens = spool.items.tokens().filter(pa.array(kept["item"])).to_pylist()
            unread = BadLines(bad.strict)
            known = write_items(folder / f"{out.name}.item", about_items, set(tokens), unread)
            notes.append(f"{known:,} of {len(tokens):,} items have a title or categories")
            if unread.count:
                notes.append(f"bad lines about items: {unread.count:,}, left out; the first: {unread.first[0]}")
    n, users, items = len(rows), int(kept["user"].sum()), int(kept["item"].sum())
    sparsity = 1 - n / (users * items)
    return Summary(users, items, n, n / users, sparsity, bad.count, tuple(bad.first), tuple(notes))


def _bar(progress: bool, **how: Any) -> Any:
    """A progress bar; none where output is not a terminal."""
    from tqdm import tqdm

    return tqdm(**how, unit_scale=True, disable=None if progress else True, leave=False)


def _columns(source: Source, reader: Reader, path: Path) -> dict[str, str]:
    """Which column is what. A column that is only guessed to have ratings must have numbers."""
    found = find_columns(source, reader.names, path)
    if "rating" in found and source.rating is None:
        cells = text_array([row.get(found["rating"]) for row in reader.head])
        if 2 * numbers(cells)[1].sum() > len(cells):
            del found["rating"]
    return found


def _notes(columns: Sequence[dict[str, str]], spool: Spool, readers: Sequence[Reader]) -> list[str]:
    """What was guessed, and what was done to times."""
    notes = [", ".join(f"{role}: {name}" for role, name in columns[0].items())]
    if readers[0].nameless:
        notes[0] += " (no header; --columns=NAME,NAME,... gives other names)"
    if "time" not in columns[0]:
        notes.append("no column of times: the order of the file is taken as time")
    elif spool.digits:
        unit = "a second" if spool.times.dates else "the source's unit"
        notes.append(f"times with fractions are written as whole numbers, in 10^-{spool.digits} of {unit}")
    return notes


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, whose finished files move to `out` at the end; after an error nothing is left."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True)
        yield folder
        for spool in folder.glob("*.spool"):
            spool.unlink()
        if not out.exists():
            folder.rename(out)
            return
        (out / f"{out.name}.item").unlink(missing_ok=True)  # of another conversion
        for file in folder.iterdir():
            file.replace(out / file.name)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
