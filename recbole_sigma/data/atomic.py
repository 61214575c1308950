"""Read atomic files (RecBole's text tables) with pyarrow; every mistake is named by file and line.

An atomic file is UTF-8 text, columns separated by tabs or commas; the first line names each column and its type, as in
`user_id:token`, `timestamp:float`. A file is read in blocks into memory or into memory-mapped files (data/arrays.py). A
line number is searched only once a mistake is known to be there.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from recbole.utils import FeatureType

from recbole_sigma.data.arrays import Columns, Storage, cached, sha256_of
from recbole_sigma.errors import UserError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 24  # bytes read at once; no line may be longer
_BLOCKS = 8  # that are put together before their ids get numbers
_CODED = pa.dictionary(pa.int32(), pa.string())
_MISSING = ["", "NA", "N/A", "n/a", "<NA>", "nan", "NaN", "null", "NULL", "None"]  # in a column of numbers


@dataclass(frozen=True)
class AtomicFormat:
    """The columns that must be in a file: name of the column -> the setting that names it."""

    ids: dict[str, str]  # type token, never missing
    time: dict[str, str] = field(default_factory=dict)  # type float, always finite


@dataclass(frozen=True)
class AtomicTable:
    """The content of a file: `frame` has the loaded columns under their bare names, `types` their types."""

    frame: pd.DataFrame
    types: dict[str, FeatureType]
    sha256: str
    path: Path

    def error(self, row: int, message: str) -> UserError:
        """A UserError that begins with the file and the line of a row (from 0)."""
        return _at_row(self.path, row, message)


def read_atomic(
    path: Path, form: AtomicFormat, wanted: Callable[[str], bool] = lambda name: True, storage: Storage | None = None
) -> AtomicTable:
    """Read the columns of `path` for which `wanted(name)` holds.

    Texts are categories (a few bytes per row), an empty one is missing; numbers are float64; times that are whole
    numbers are int64, so that no digit is lost. With a `storage` that has a folder, columns are memory-mapped files
    below it, which are kept for the next time that the same content is read. Raises UserError, `path:line: what is
    wrong; what would be right`, for a file that is missing, empty, not UTF-8, or has a wrong header, number of columns
    or number, or a missing id or time.
    """
    try:
        sha256, most_rows = _check_text(path)
        separator, columns = _read_header(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see dataset/README.md for getting data") from None
    types = {name: kind for name, kind in columns.items() if wanted(name)}
    for name, setting in {**form.ids, **form.time}.items():
        kind = FeatureType.FLOAT if name in form.time else FeatureType.TOKEN
        if name not in columns:
            raise UserError(f"{path}:1: no column {name!r} (setting {setting}); the columns are {', '.join(columns)}")
        if name not in types:
            raise UserError(f"load_col, unload_col: column {name!r} (setting {setting}) of {path} must be loaded")
        if columns[name] != kind:
            written = f"{name}:{columns[name].value}"
            raise UserError(f"{path}:1: {written} has the wrong type (setting {setting}); write {name}:{kind.value}")
    read = _Reader(path, separator, columns, types, form, most_rows).read
    if storage is None or storage.folder is None:
        found = read(Storage())
    else:
        layout = repr((sorted(form.ids), sorted(form.time), sorted((name, kind.value) for name, kind in types.items())))
        folder = storage.folder / hashlib.sha256(f"1 {sha256} {layout}".encode()).hexdigest()[:32]
        logger.info("%s: its columns are kept in %s", path, folder)
        found = cached(folder, read)
    frame = {
        name: values if texts is None else pd.Categorical.from_codes(values, texts)
        for name, (values, texts) in found.items()
    }
    return AtomicTable(pd.DataFrame(frame, copy=False), types, sha256, path)


def read_columns(path: Path) -> list[str]:
    """The names of a file's columns. Raises UserError as `read_atomic`."""
    try:
        return [*_read_header(path)[1]]
    except (OSError, UnicodeDecodeError):  # which `read_atomic` explains
        return list(read_atomic(path, AtomicFormat({})).types)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, "" if it cannot be read; read again only after it has changed."""
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return ""


@functools.cache
def _digest_of(path: Path, _modified: int, _size: int) -> str:
    return sha256_of(path)


def _check_text(path: Path) -> tuple[str, int]:
    """SHA-256 of the file's bytes, which must be UTF-8 text without the character NUL, and the number of its lines."""
    digest, line, ends = hashlib.sha256(), 1, 1
    with path.open("rb") as file:
        while block := file.read(_BLOCK) + file.readline():
            digest.update(block)
            wrong, what = block.find(b"\0"), "the character NUL (0x00); a plain text table is expected"
            try:
                block.decode()
            except UnicodeDecodeError as error:
                wrong, what = error.start, f"not UTF-8 (byte {block[error.start]:#04x}); convert the file to UTF-8"
            if wrong >= 0:
                line += block.count(b"\n", 0, wrong)
                raise UserError(f"{path}:{line}: {what}")
            line += block.count(b"\n")
            ends += block.count(b"\r") - block.count(b"\r\n") if b"\r" in block else 0
    return digest.hexdigest(), line + ends


def _read_header(path: Path) -> tuple[str, dict[str, FeatureType]]:
    """The separator, and the names and types of all columns, in order."""
    with path.open("rb") as file:
        text = file.readline().decode("utf-8-sig").rstrip("\r\n")
    if not text.strip():
        example = "user_id:token\titem_id:token\ttimestamp:float"
        raise UserError(f"{path}:1: the file is empty or begins with an empty line; write a header such as {example!r}")
    separator = "\t" if "\t" in text else ","
    columns: dict[str, FeatureType] = {}
    kinds = [each.value for each in FeatureType]
    for title in text.split(separator):
        name, _, kind = title.partition(":")
        if kind not in kinds:
            what = f"column {name!r} has the unknown type {kind!r}" if kind else f"column {name!r} has no type"
            right = f"write {name}:TYPE, with TYPE one of {', '.join(kinds)}; separate columns by tabs or commas"
            raise UserError(f"{path}:1: {what}; {right}")
        if name in columns:
            raise UserError(f"{path}:1: column {name!r} appears twice; every column needs a name of its own")
        columns[name] = FeatureType(kind)
    return separator, columns


class _ManyDigits(pa.ArrowInvalid):
    """Times that have to be compared with all others, digit by digit."""


@dataclass(frozen=True)
class _Reader:
    """Reads the columns `types` of a file that has the columns `columns` and at most `most_rows` rows."""

    path: Path
    separator: str
    columns: dict[str, FeatureType]
    types: dict[str, FeatureType]
    form: AtomicFormat
    most_rows: int

    def read(self, storage: Storage, times: str = "whole") -> Columns:
        """All values. `times`: whole numbers; short, which float64 holds exactly; or any, which needs much memory."""
        try:
            return self._fill(storage, times)
        except _ManyDigits:
            return self.read(storage, "any")
        except pa.ArrowInvalid as error:
            if times == "whole" and "error to int64" in str(error):
                return self.read(storage, "short")
            raise self._refusal(str(error)) from None

    def _fill(self, storage: Storage, times: str) -> Columns:
        values, texts, any_times, rows = {}, {}, [], 0
        for number, (name, kind) in enumerate(self.types.items()):
            is_time, is_text = name in self.form.time, kind != FeatureType.FLOAT
            dtype = np.int32 if is_text else np.int64 if is_time and times == "whole" else np.float64
            values[name] = storage.empty(self.most_rows, dtype, str(number))
            if is_text:
                texts[name] = pa.array([], pa.string())
        for table in self._tables("int64" if times == "whole" else "string"):
            part = slice(rows, rows + len(table))
            for name, column in zip(self.types, table.columns, strict=True):
                if name in texts:
                    texts[name], values[name][part] = _coded(texts[name], column)
                elif name not in self.form.time or (times == "whole" and not column.null_count):
                    values[name][part] = column.to_numpy()
                else:
                    floats = column.cast(pa.float64()).to_numpy()
                    self._check_time(name, floats, rows)
                    values[name][part] = floats
                    if times == "short":
                        _check_digits(column, floats)
                    any_times.append(column)
                if name in self.form.ids:
                    self._check_id(name, values[name][part], rows)
            rows = part.stop
        if not rows:
            raise UserError(f"{self.path}:2: no data below the header; one line per row is expected")
        for name in self.form.time if times == "any" else ():
            exact = _times(self.path, name, pa.chunked_array(any_times)).to_numpy()
            values[name] = values[name].view(exact.dtype)
            values[name][:rows] = exact
        return {
            name: (array[:rows], texts[name].to_pylist() if name in texts else None) for name, array in values.items()
        }

    def _tables(self, times: str) -> Iterator[pa.Table]:
        """The file, some blocks at once. Quotation marks are letters."""
        kinds = {name: pa.float64() if kind == FeatureType.FLOAT else _CODED for name, kind in self.types.items()}
        kinds.update(dict.fromkeys(self.form.time, pa.type_for_alias(times)))
        with csv.open_csv(self.path, csv.ReadOptions(block_size=_BLOCK), *self._options(kinds)) as batches:
            while some := [*islice(batches, _BLOCKS)]:
                yield pa.Table.from_batches(some)

    def _options(self, kinds: dict[str, pa.DataType]) -> tuple[csv.ParseOptions, csv.ConvertOptions]:
        titles = {f"{name}:{self.types[name].value}": kind for name, kind in kinds.items()}
        convert = csv.ConvertOptions(
            column_types=titles, include_columns=[*titles], null_values=_MISSING, check_utf8=False
        )
        return csv.ParseOptions(delimiter=self.separator, quote_char=False, double_quote=False), convert

    def _check_id(self, name: str, codes: np.ndarray, rows: int) -> None:
        """Refuse a missing id among those that begin at row `rows`."""
        wrong = np.flatnonzero(codes < 0)
        if len(wrong):
            raise _at_row(self.path, rows + int(wrong[0]), f"{name} is missing; every row needs one")

    def _check_time(self, name: str, time: np.ndarray, rows: int) -> None:
        """Refuse a missing or infinite time among those that begin at row `rows`."""
        wrong = np.flatnonzero(~np.isfinite(time))
        if len(wrong):
            what = "missing" if np.isnan(time[wrong[0]]) else f"{time[wrong[0]]}"
            raise _at_row(self.path, rows + int(wrong[0]), f"{name} is {what}; every interaction needs a finite time")

    def _refusal(self, problem: str) -> UserError:
        """The UserError for a line that pyarrow refuses; it names the row only where it reads without threads."""
        numbers = {name: pa.float64() for name, kind in self.types.items() if kind == FeatureType.FLOAT}
        try:
            read = csv.ReadOptions(use_threads=False, block_size=_BLOCK)
            csv.read_csv(self.path, read, *self._options(numbers or dict.fromkeys(self.types, pa.string())))
        except pa.ArrowInvalid as error:
            problem = str(error)
        return _refusal(self.path, list(self.columns), problem)


def _coded(known: pa.Array, column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The `known` texts with those that are new, and the code of each cell, -1 for an empty one."""
    nothing = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), known)
    chunks = pa.chunked_array([nothing, *column.chunks]).unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    codes[codes == pc.index(chunks[0].dictionary, "").as_py()] = -1
    return chunks[0].dictionary, codes


def _check_digits(texts: pa.ChunkedArray, times: np.ndarray) -> None:
    """Raise _ManyDigits unless different numbers in `texts` are different in float64, here and in any other text.

    That is so for up to 15 digits, and for the shortest text of a float64.
    """
    long = pc.greater(pc.utf8_length(texts), 15)
    if pc.any(long).as_py():
        shortest = pa.array(times).cast(pa.string())
        other = pc.not_equal(pc.utf8_rtrim(texts, "0."), pc.utf8_rtrim(shortest, "0."))
        if pc.any(pc.and_(long, other)).as_py():
            raise _ManyDigits


def _times(path: Path, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Times as text -> numbers that differ where the texts do: float64, or int64 if that is needed and possible.

    Raises ArrowInvalid for what is no number, and UserError with the line of a time that a number cannot tell from
    another.
    """
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary
    values = texts.cast(pa.float64()).to_numpy()
    order = np.argsort(values, kind="stable")
    equal = np.flatnonzero(values[order][1:] == values[order][:-1])
    for one, other in zip(order[equal], order[equal + 1], strict=True):
        if Decimal(texts[int(one)].as_py()) != Decimal(texts[int(other)].as_py()):
            break
    else:
        return pa.array(values).take(encoded.indices)
    exact = [Decimal(text) for text in texts.to_pylist()]
    if all(each == each.to_integral_value() and abs(each) < 2**63 for each in exact):
        return pa.array([int(each) for each in exact], pa.int64()).take(encoded.indices)
    rows = encoded.indices.to_numpy()
    first, second = sorted((int((rows == each).argmax()), str(texts[int(each)])) for each in (one, other))
    right = "times have at most 18 digits, or 15 with a fraction; subtract the same number from all"
    both = f"{name} {second[1]} cannot be distinguished from {first[1]} in line {_line_of(path, first[0])}"
    raise _at_row(path, second[0], f"{both}; {right}")


def _refusal(path: Path, names: list[str], problem: str) -> UserError:
    """The UserError for pyarrow's message about a row (the header is row 1, empty lines do not count)."""
    match = re.search(
        r"(?:column #(\d+): )?Row #(\d+): (?:Expected (\d+) columns, got (\d+)|.*invalid value '(.*)')", problem, re.S
    )
    if not match:
        problem = f"a line has more than {_BLOCK} bytes" if "straddl" in problem else problem
        return UserError(f"{path}: cannot be read ({problem}); a header line and rows of plain text are expected")
    column, row, expected, actual, value = match.groups()
    what = f"{actual} column(s) in this line, {expected} in the header"
    if column:
        what = f"{names[int(column)]}:float is {value!r}; a number is expected"
    return _at_row(path, int(row) - 2, what)


def _at_row(path: Path, row: int, message: str) -> UserError:
    return UserError(f"{path}:{_line_of(path, row)}: {message}")


def _line_of(path: Path, row: int) -> int:
    """Line of the file (from 1) of a row of the table (from 0): slow, as empty lines are not rows."""
    with path.open(encoding="utf-8") as file:
        lines = (number for number, text in enumerate(file, start=1) if text.strip("\n"))
        return next(islice(lines, row + 1, None))
