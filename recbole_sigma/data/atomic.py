"""Read atomic files (RecBole's text tables) with pyarrow; every mistake is named by file and line.

An atomic file is UTF-8 text, columns separated by tabs or commas; the first line names each column and its type, as in
`user_id:token`, `timestamp:float`. A line number is searched only once a mistake is known to be there.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv
from recbole.utils import FeatureType

from recbole_sigma.errors import UserError

_BLOCK = 1 << 24  # bytes read at once; no line may be longer
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
        return UserError(f"{self.path}:{_line_of(self.path, row)}: {message}")


def read_atomic(path: Path, form: AtomicFormat, wanted: Callable[[str], bool] = lambda name: True) -> AtomicTable:
    """Read the columns of `path` for which `wanted(name)` holds.

    Ids are categories (a few bytes per row), other tokens are text, numbers are float64; times that are whole numbers
    are int64, so that no digit is lost. Raises UserError, `path:line: what is wrong; what would be right`, for a file
    that is missing, empty, not UTF-8, or has a wrong header, number of columns or number, or a missing id or time.
    """
    try:
        sha256 = _check_text(path)
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
    table = AtomicTable(_read_columns(path, separator, columns, types, form), types, sha256, path)
    _check_values(table, form)
    return table


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
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_text(path: Path) -> str:
    """SHA-256 of the file's bytes, which must be UTF-8 text without the character NUL."""
    digest, line = hashlib.sha256(), 1
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
    return digest.hexdigest()


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


def _read_columns(
    path: Path, separator: str, columns: dict[str, FeatureType], types: dict[str, FeatureType], form: AtomicFormat
) -> pd.DataFrame:
    """The columns `types`. Quotation marks are letters; without threads, pyarrow's messages name the row."""
    titles = {name: f"{name}:{kind.value}" for name, kind in types.items()}
    arrow = {titles[name]: pa.float64() if kind == FeatureType.FLOAT else pa.string() for name, kind in types.items()}
    arrow.update({titles[name]: pa.dictionary(pa.int32(), pa.string()) for name in form.ids})
    for time_type, threads in ((pa.int64(), True), (pa.string(), True), (pa.float64(), False)):
        arrow.update({titles[name]: time_type for name in form.time})
        try:
            read = csv.ReadOptions(use_threads=threads, block_size=_BLOCK)
            parse = csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False)
            convert = csv.ConvertOptions(
                column_types=arrow, include_columns=list(arrow), null_values=_MISSING, check_utf8=False
            )
            table = csv.read_csv(path, read, parse, convert)
            for name in form.time if time_type == pa.string() else ():
                index = table.schema.get_field_index(titles[name])
                table = table.set_column(index, titles[name], _times(path, name, table[titles[name]]))
            break
        except pa.ArrowInvalid as error:
            problem = str(error)
    else:
        raise _refusal(path, list(columns), problem)
    table = table.rename_columns(list(types))
    return table.to_pandas(split_blocks=True, self_destruct=True)


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
    both = f"{name} {second[1]} cannot be told from {first[1]} in line {_line_of(path, first[0])}"
    raise UserError(f"{path}:{_line_of(path, second[0])}: {both}; {right}")


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
    return UserError(f"{path}:{_line_of(path, int(row) - 2)}: {what}")


def _line_of(path: Path, row: int) -> int:
    """Line of the file (from 1) of a row of the table (from 0): slow, as empty lines are not rows."""
    with path.open(encoding="utf-8") as file:
        lines = (number for number, text in enumerate(file, start=1) if text.strip("\n"))
        return next(islice(lines, row + 1, None))


def _check_values(table: AtomicTable, form: AtomicFormat) -> None:
    """Refuse a file without rows, a missing id, a time that is missing or infinite."""
    if table.frame.empty:
        raise UserError(f"{table.path}:2: no data below the header; one line per row is expected")
    for name in form.ids:
        missing = (table.frame[name] == "").to_numpy()
        if missing.any():
            raise table.error(int(missing.argmax()), f"{name} is missing; every row needs one")
    for name in form.time:
        time = table.frame[name].to_numpy()
        wrong = ~np.isfinite(time)
        if wrong.any():
            row = int(wrong.argmax())
            what = "missing" if np.isnan(time[row]) else f"{time[row]}"
            raise table.error(row, f"{name} is {what}; every interaction needs a finite time")
    for name, kind in table.types.items():
        if kind == FeatureType.TOKEN and name not in form.ids:  # the only empty cells that are missing values
            table.frame[name] = table.frame[name].mask(table.frame[name] == "")
