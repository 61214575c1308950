"""Atomic files (RecBole's tab-separated tables): read fast, checked whole, every mistake named by file and line.

An atomic file is text; its first line names each column and its type:

    user_id:token   item_id:token   timestamp:float
    196             242             881250949

Checks run on whole blocks of bytes and whole columns. Only once a mistake is known to be there is its line searched.
"""

import codecs
import csv
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_sigma.errors import UserError

_BLOCK = 1 << 24  # bytes looked at together
_CHUNK = 1 << 19  # rows read together
_MISSING = ["", "NA", "N/A", "n/a", "<NA>", "nan", "NaN", "null", "NULL", "None"]  # in a column of numbers
_TYPES = "token, token_seq, float or float_seq"

# pandas below 3.1 rounds the last digit of some decimals unless asked not to; from 3.1 on it never does, and warns.
_PANDAS = tuple(int(part) for part in pd.__version__.split(".")[:2])
_EXACT_DECIMALS: dict[str, Any] = {"float_precision": "round_trip"} if _PANDAS < (3, 1) else {}


@dataclass(frozen=True)
class AtomicFormat:
    """How the file is written (settings `field_separator`, `encoding`) and what must stand in it."""

    separator: str = "\t"
    encoding: str = "utf-8"
    # column -> the setting that names it
    ids: dict[str, str] = field(default_factory=dict)  # type token, never missing
    time: dict[str, str] = field(default_factory=dict)  # type float, always finite, kept as written (int64 or float64)

    @property
    def row(self) -> str:
        """What a line of the file is."""
        return "interaction" if self.time else "row"


@dataclass(frozen=True)
class AtomicTable:
    """One file, read: `frame` has the loaded columns under their bare names, `types` their types."""

    frame: pd.DataFrame
    types: dict[str, FeatureType]
    sha256: str
    path: Path
    lines: "_Lines"

    def error(self, row: int, message: str) -> UserError:
        """A UserError that begins with the place of a row (from 0)."""
        return UserError(f"{self.path}:{self.lines.of_row(row)}: {message}")


@dataclass(frozen=True)
class _Lines:
    """What one pass over the bytes tells: hash, number of data rows, line numbers of empty lines."""

    sha256: str
    rows: int
    empty: list[int]

    def of_row(self, row: int) -> int:
        """Row of the table (from 0) -> line of the file (from 1; the header is line 1)."""
        line = row + 2
        for empty in self.empty:
            line += empty <= line
        return line


def read_atomic(path: Path, form: AtomicFormat, wanted: Callable[[str], bool] = lambda name: True) -> AtomicTable:
    """Read the columns of `path` for which `wanted(name)` holds.

    Columns of ids come as categories (few bytes a row), other tokens as text, numbers as float64, the time column as
    int64 where all of it is whole numbers, so that no digit is lost.

    Raises UserError, `path:line: what is wrong; what would be right`, for a file that is missing, empty, not in its
    encoding, or has a wrong header, a wrong number of columns, a word where a number should be, no id, no time.
    """
    try:
        columns = _read_header(path, form)
        lines = _scan(path, form, len(columns))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see dataset/README.md for getting data") from None
    loaded = {name: kind for name, kind in columns.items() if wanted(name)}
    if not loaded and not form.time:  # a file that load_col leaves out
        return AtomicTable(pd.DataFrame(), {}, lines.sha256, path, lines)
    _check_columns(path, form, columns, loaded)
    if lines.rows == 0 and form.ids:
        raise UserError(f"{path}:2: no data below the header; one line for each {form.row} is expected")
    frame = _read_columns(path, form, list(columns), loaded)
    if len(frame) != lines.rows:
        raise UserError(f"{path}: {lines.rows} lines of data were read as {len(frame)} rows; is it a plain text table?")
    _check_values(path, form, frame, lines)
    return AtomicTable(frame, loaded, lines.sha256, path, lines)


def _read_header(path: Path, form: AtomicFormat) -> dict[str, FeatureType]:
    """Names and types of all columns, in order."""
    if len(form.separator) != 1 or not form.separator.isascii():
        raise UserError(f"field_separator: {form.separator!r} is not one ASCII character")
    _check_encoding(form.encoding)
    with path.open("rb") as file:
        head = file.readline(_BLOCK).removeprefix(codecs.BOM_UTF8)
    text = _decode(head, path, 1, form.encoding).rstrip("\r\n")
    if not text.strip():
        example = form.separator.join(["user_id:token", "item_id:token", "timestamp:float"])
        raise UserError(f"{path}:1: the file is empty or begins with an empty line; write a header, as {example!r}")
    columns: dict[str, FeatureType] = {}
    for title in text.split(form.separator):
        name, _, kind = title.partition(":")
        if kind not in {each.value for each in FeatureType}:
            what = f"column {name!r} has the unknown type {kind!r}" if kind else f"column {name!r} has no type"
            raise UserError(f"{path}:1: {what}; write {name}:TYPE, where TYPE is {_TYPES}")
        if name in columns:
            raise UserError(f"{path}:1: column {name!r} appears twice; every column needs a name of its own")
        columns[name] = FeatureType(kind)
    return columns


def _check_columns(path: Path, form: AtomicFormat, columns: dict[str, FeatureType], loaded: Collection[str]) -> None:
    """The columns that the settings name must be there, loaded, and of the right type."""
    needed = [(form.ids, FeatureType.TOKEN), (form.time, FeatureType.FLOAT)]
    for names, kind in needed:
        for name, setting in names.items():
            if name not in columns:
                there = ", ".join(columns)
                raise UserError(f"{path}:1: no column {name!r} (setting {setting}); the columns are {there}")
            if name not in loaded:
                raise UserError(f"load_col, unload_col: column {name!r} (setting {setting}) of {path} must be loaded")
            if columns[name] != kind:
                was = f"{name}:{columns[name].value}"
                raise UserError(f"{path}:1: {was} has the wrong type (setting {setting}); write {name}:{kind.value}")


def _scan(path: Path, form: AtomicFormat, n_columns: int) -> _Lines:
    """One pass over the bytes: encoding and number of columns of every line."""
    digest, line, rows, empty = hashlib.sha256(), 1, 0, []
    for block in _blocks_of_lines(path, digest.update):
        _decode(block, path, line, form.encoding)
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        _refuse_control_characters(path, line, data)
        separators = np.searchsorted(np.flatnonzero(data == ord(form.separator)), ends)
        found = np.diff(separators, prepend=0) + 1
        starts = np.concatenate([[0], ends[:-1] + 1])
        blank = (ends == starts) | ((ends == starts + 1) & (data[starts] == ord("\r")))
        wrong = np.flatnonzero((found != n_columns) & ~blank)
        if len(wrong):
            first = int(wrong[0])
            raise UserError(f"{path}:{line + first}: {found[first]} column(s) in this line, {n_columns} in the header")
        empty += (line + np.flatnonzero(blank)).tolist()
        rows += len(ends) - int(blank.sum())
        line += len(ends)
    return _Lines(digest.hexdigest(), rows - 1, empty)


def _blocks_of_lines(path: Path, update: Callable[[bytes], None]) -> Iterator[bytes]:
    """The bytes of `path` in blocks of whole lines, the last one closed; `update` sees every byte as it is."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            update(block)
            end = block.rfind(b"\n") + 1
            if end:
                yield rest + block[:end]
                rest = block[end:]
            else:
                raise UserError(f"{path}: a line of more than {_BLOCK} bytes; a plain text table is expected")
    if rest:
        yield rest + b"\n"


def _check_encoding(encoding: str) -> None:
    """Lines and columns are found among bytes: an encoding must write ASCII as such."""
    ascii_text = "user_id:token\t1.5\r\n"
    try:
        right = ascii_text.encode("ascii").decode(encoding) == ascii_text
    except (LookupError, ValueError):  # no encoding of text; a UnicodeError is a ValueError
        right = False
    if not right:
        raise UserError(f"encoding: {encoding!r} is unknown or no extension of ASCII; utf-8 is usual")


def _decode(block: bytes, path: Path, line: int, encoding: str) -> str:
    """The text of `block`, whose first line is line `line` of the file."""
    try:
        return block.decode(encoding)
    except UnicodeDecodeError as error:
        line += block[: error.start].count(b"\n")
        raise UserError(
            f"{path}:{line}: not {encoding.upper()} (byte {block[error.start]:#04x}); convert the file, or set encoding"
        ) from None


def _refuse_control_characters(path: Path, line: int, data: np.ndarray) -> None:
    """NUL, and a carriage return inside a line, would be read as something else than they look like."""
    suspect = np.flatnonzero((data == 0) | (data == ord("\r")))
    bad = suspect[(data[suspect] == 0) | (data[np.minimum(suspect + 1, len(data) - 1)] != ord("\n"))]
    if len(bad):
        line += int(np.count_nonzero(data[: bad[0]] == ord("\n")))
        raise UserError(f"{path}:{line}: control character {data[bad[0]]:#04x}; a plain text table is expected")


def _read_columns(path: Path, form: AtomicFormat, names: list[str], loaded: dict[str, FeatureType]) -> pd.DataFrame:
    """The loaded columns. pandas reads, quotes are letters like any other; ids are encoded chunk by chunk.

    (`dtype="category"` would make the tokens 7 and 007 one, where all of them look like numbers.)
    """
    inferred = {name for name in form.time if loaded[name] == FeatureType.FLOAT}
    dtypes = {name: np.float64 if kind == FeatureType.FLOAT else str for name, kind in loaded.items()}
    encoders = {name: _TokenEncoder() for name in form.ids}
    parts: dict[str, list[Any]] = {name: [] for name in loaded}
    try:
        chunks = pd.read_csv(
            path, sep=form.separator, header=0, names=names, usecols=list(loaded), index_col=False,
            dtype={name: dtype for name, dtype in dtypes.items() if name not in inferred},
            na_values={name: _MISSING if kind == FeatureType.FLOAT else [""] for name, kind in loaded.items()},
            keep_default_na=False, quoting=csv.QUOTE_NONE, encoding=form.encoding, chunksize=_CHUNK, **_EXACT_DECIMALS,
        )  # fmt: skip
        for chunk in chunks:
            for name in loaded:
                if name in inferred and chunk[name].dtype.kind not in "iuf":
                    _refuse_words_for_numbers(path, form, names, loaded)
                    chunk[name] = chunk[name].astype(np.float64)  # whole numbers too long for 64 bits
                parts[name].append(encoders[name].encode(chunk[name]) if name in encoders else chunk[name])
    except (ValueError, TypeError) as error:
        _refuse_words_for_numbers(path, form, names, loaded)
        raise UserError(f"{path}: cannot be read ({error})") from error
    columns = {}
    for name in loaded:
        column = parts.pop(name)
        columns[name] = encoders[name].column(column) if name in encoders else pd.concat(column, ignore_index=True)
    return pd.DataFrame(columns, copy=False)


class _TokenEncoder:
    """Numbers the tokens of one column as they come."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def encode(self, tokens: pd.Series) -> np.ndarray:
        """(n,) text -> (n,) int32, -1 where there is none"""
        numbers, distinct = pd.factorize(tokens)
        known = [self._number.setdefault(token, len(self._number)) for token in distinct.tolist()]
        return np.array([*known, -1], dtype=np.int32)[numbers]

    def column(self, parts: list[np.ndarray]) -> pd.Categorical:
        """All parts together, as a column of text in few bytes a row."""
        return pd.Categorical.from_codes(np.concatenate(parts), categories=pd.Index(list(self._number), dtype=str))


def _refuse_words_for_numbers(path: Path, form: AtomicFormat, names: list[str], loaded: dict[str, FeatureType]) -> None:
    """Search the first line where a loaded column of numbers holds something else (slow: known to be there)."""
    numbers = [(names.index(name), name) for name, kind in loaded.items() if kind == FeatureType.FLOAT]
    with path.open(encoding=form.encoding, newline="\n") as file:
        next(file)
        for line, text in enumerate(file, start=2):
            cells = text.rstrip("\r\n").split(form.separator)
            for position, name in numbers:
                if text.strip("\r\n") and not _is_number_or_missing(cells[position]):
                    raise UserError(f"{path}:{line}: {name}:float is {cells[position]!r}; a number is expected")


def _is_number_or_missing(cell: str) -> bool:
    return cell in _MISSING or is_number(cell)


def is_number(cell: str) -> bool:
    """Whether pandas takes `cell` for a number: one in ASCII, without Python's underscores."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell and cell.isascii()


def _check_values(path: Path, form: AtomicFormat, frame: pd.DataFrame, lines: _Lines) -> None:
    """No id missing; every time there and finite."""
    for name in form.ids:
        missing = frame[name].isna().to_numpy()
        if missing.any():
            line = lines.of_row(int(missing.argmax()))
            raise UserError(f"{path}:{line}: {name} is missing; every {form.row} needs one")
    for name in form.time:
        time = frame[name].to_numpy()
        wrong = ~np.isfinite(time)
        if wrong.any():
            row = int(wrong.argmax())
            what = "missing" if np.isnan(time[row]) else f"{time[row]}"
            raise UserError(f"{path}:{lines.of_row(row)}: {name} is {what}; every interaction needs a finite time")
