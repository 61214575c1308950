"""Raw files -> tables of the wanted columns, block by block, in memory that does not depend on the file's size.

A block whose every line is one good row is read by pyarrow; any other one by Python's own readers, line by line, so
that a bad line costs only itself and is named.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json
from pyarrow import parquet

from recbole_sigma.convert.formats import ItemSource, Source
from recbole_sigma.errors import UserError, one_line

BLOCK = 1 << 24  # bytes
_LONGEST_RECORD = 100  # lines of one row, whose quoted fields have line breaks
_USUAL_ORDER = {2: "user item", 3: "user item time", 4: "user item rating time"}  # without a header
_UNREADABLE = re.compile("[\ud800-\udfff]")  # what is left of bytes that are not UTF-8
_VALUE = re.compile(r"[-+]?\d+(\.\d*)?|\d{4}-\d\d-\d\d.*")  # a number or an ISO date, which no header has
_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_KINDS = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".dat": "csv", ".data": "csv", ".json": "jsonl", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".inter": "atomic", ".item": "atomic",
}  # fmt: skip


@dataclass
class BadLines:
    """Lines that are left out: how many, and what is wrong with the first; with `strict` the first is an error."""

    strict: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many more lines will be described."""
        return 5 - len(self.first)

    def add(self, where: str, problem: str) -> None:
        """Count one line, `FILE:LINE`."""
        self.count += 1
        if self.strict:
            raise UserError(f"{where}: {problem}")
        if self.room:
            self.first.append(f"{where}: {problem}")


@dataclass(frozen=True)
class Block:
    """Some rows: the wanted columns, as text or of the file's own types, and where each row is."""

    table: pa.Table
    file: object
    lines: Sequence[int]

    def where(self, row: int) -> str:
        """What to call a row of the block in a message."""
        return f"{self.file}:{self.lines[row]}"


class Reader:
    """One raw file: the names of its columns and its first rows; `blocks` reads the columns that are asked for."""

    names: list[str]
    head: list[dict[str, Any]]
    nameless = False  # a file without a header, whose columns nobody has named
    blanks = False  # what separates the words of a list: blanks, as in atomic files

    def blocks(self, wanted: Sequence[str], bad: BadLines, advance: Callable[[int], object]) -> Iterator[Block]:
        """Read the columns `wanted`; `advance` is called with the bytes of the file that each block took."""
        raise NotImplementedError


def open_source(source: Source | ItemSource, path: Path) -> Reader:
    """The reader for one file. Raises UserError for a file that is missing, empty or of no known kind."""
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give the file with the raw interactions")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = _PACKED.get(suffixes.pop()) if suffixes and suffixes[-1] in _PACKED else None
    kind = source.kind or _KINDS.get(suffixes[-1] if suffixes else "")
    if source.python_literals:
        kind = "jsonl"
    if kind is None:
        known = " ".join(_KINDS)
        raise UserError(f"{path}: unknown kind of file; known are {known} (also .gz, .zst, .bz2), or give --kind=csv")
    if kind == "parquet":
        return _parquet(path)
    return (_Json if kind == "jsonl" else _Csv)(path, kind, packed, source)


class Batches(Reader):
    """A table in pieces, with columns of its own types: of a frame, or of a Parquet file."""

    def __init__(self, name: object, table: Any, size: int = 0) -> None:
        """`table` is a pyarrow Table or ParquetFile; `size` in bytes is what a progress bar counts."""
        self._name, self._table, self._size = name, table, size
        file = isinstance(table, parquet.ParquetFile)
        self._rows = table.metadata.num_rows if file else table.num_rows
        self.names = list((table.schema_arrow if file else table.schema).names)
        self.head = next(self._pieces(self.names, 100), pa.table([])).to_pylist()

    def _pieces(self, wanted: Sequence[str], rows: int = 1 << 18) -> Iterator[pa.Table]:
        if isinstance(self._table, pa.Table):
            yield from (self._table.select(wanted).slice(row, rows) for row in range(0, self._rows, rows))
            return
        try:
            for batch in self._table.iter_batches(rows, columns=list(wanted)):
                yield pa.Table.from_batches([batch]).select(wanted)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._name}: damaged: {one_line(error)}") from None

    def blocks(self, wanted: Sequence[str], bad: BadLines, advance: Callable[[int], object]) -> Iterator[Block]:
        done = 0
        for piece in self._pieces(wanted):
            yield Block(piece, f"{self._name}:row", range(done + 1, done + 1 + piece.num_rows))
            done += piece.num_rows
            advance(self._size * piece.num_rows // self._rows)


def _parquet(path: Path) -> Batches:
    try:
        return Batches(path, parquet.ParquetFile(path), path.stat().st_size)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {one_line(error)}") from None


class _Lines(Reader):
    """Text in blocks of complete lines."""

    def __init__(self, path: Path, kind: str, packed: str | None, source: Source | ItemSource) -> None:
        self._path, self._kind, self._packed = path, kind, packed
        self._latin = isinstance(source, ItemSource)  # titles of old data sets; never ids
        self._skip, self._old_mac = 0, False  # lines of the header; whether lines end in CR alone
        head = next(self._chunks(lambda taken: None), (b"", True))[0]
        self._old_mac = b"\r" in head and b"\n" not in head
        self._empty = head[: len(head) - len(head.lstrip())].count(b"\n")  # lines above the first
        lines = _UNREADABLE.sub("\ufffd", self._text(head[: 1 << 20])).split("\n")
        lines = [line for line in (lines if len(head) < 1 << 20 else lines[:-1])[:1000] if line.strip()]
        if not lines:
            raise UserError(f"{path}: the file is empty; rows of interactions are expected")
        self._begin(lines, source)

    def _begin(self, lines: list[str], source: Any) -> None:
        """Find `names` and `head` in the first lines."""
        raise NotImplementedError

    def _fast(self, block: bytes, wanted: Sequence[str]) -> pa.Table | None:
        """The rows of a block in which every line is one; None where this reader is not sure of them."""
        raise NotImplementedError

    def _records(self, lines: list[str], ended: bool, wanted: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
        """(line, lines taken, row or what is wrong with the line) of each record; stops before an unfinished one."""
        raise NotImplementedError

    def _text(self, block: bytes) -> str:
        try:
            text = block.decode()
        except UnicodeDecodeError:
            text = block.decode("latin-1") if self._latin else block.decode(errors="surrogateescape")
        return text.replace("\r\n", "\n").replace("\r", "\n" if self._old_mac else " ")

    def _chunks(self, advance: Callable[[int], object]) -> Iterator[tuple[bytes, bool]]:
        """Blocks of bytes as they are in the file, without a BOM, and whether the file ends there."""
        done = 0
        try:
            with pa.OSFile(str(self._path)) as raw:
                stream = pa.CompressedInputStream(raw, self._packed) if self._packed else raw
                block = stream.read(BLOCK).removeprefix(b"\xef\xbb\xbf")
                if block.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{self._path}: UTF-16 text; convert it to UTF-8")
                if block.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04")):
                    raise UserError(f"{self._path}: its content is packed or Parquet, which its name does not say")
                while block:
                    following = stream.read(BLOCK)
                    yield block, not following
                    position = raw.tell()
                    advance(position - done)
                    block, done = following, position
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._path}: cannot be read: {one_line(error)}") from None

    def blocks(self, wanted: Sequence[str], bad: BadLines, advance: Callable[[int], object]) -> Iterator[Block]:
        rest, line, skip = b"", 1, self._skip
        for chunk, ended in self._chunks(advance):
            block = rest + chunk
            if self._old_mac:
                block = block.replace(b"\r", b"\n")
            end = len(block) if ended else block.rfind(b"\n") + 1
            block, rest = block[:end], block[end:]
            if len(rest) > 4 * BLOCK:
                raise UserError(f"{self._path}:{line}: a line of more than {4 * BLOCK} bytes; is it a table?")
            for _ in range(skip):
                block = block.partition(b"\n")[2]
            line, skip = line + skip, 0
            table = self._fast(block, wanted) if block else None
            if table is not None:
                yield Block(table, self._path, range(line, line + table.num_rows))
                line += table.num_rows
            elif block:
                lines = list(io.StringIO(self._text(block), newline="\n"))
                table, numbers, taken = self._slow(lines, ended, wanted, line, bad)
                yield Block(table, self._path, numbers)
                rest = "".join(lines[taken:]).encode(errors="surrogateescape") + rest
                line += taken

    def _slow(
        self, lines: list[str], ended: bool, wanted: Sequence[str], first: int, bad: BadLines
    ) -> tuple[pa.Table, list[int], int]:
        """The table of a block, the line of each row, and how many lines were taken."""
        rows: list[Sequence[Any]] = []
        numbers: list[int] = []
        end = 0
        unreadable = any(map(_UNREADABLE.search, lines))
        for number, taken, row in self._records(lines, ended, wanted):
            end = number + taken
            if unreadable and any(map(_UNREADABLE.search, filter(None, map(_cell, row)))):
                row = "not UTF-8; convert the file to UTF-8"
            if isinstance(row, str):
                bad.add(f"{self._path}:{first + number}", row)
            else:
                rows.append(row)
                numbers.append(first + number)
        columns = list(zip(*rows, strict=True)) or [()] * len(wanted)
        return pa.table([text_array(column) for column in columns], list(wanted)), numbers, end


def text_array(values: Sequence[Any]) -> pa.Array:
    """Values of a column as text."""
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, UnicodeError):  # numbers, lists, half characters
        return pa.array([cell and _UNREADABLE.sub("?", cell) for cell in map(_cell, values)], pa.string())


def _cell(value: Any) -> str | None:
    """A value of a line as text; whole numbers have no point; lists (of categories) as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


class _Csv(_Lines):
    def _begin(self, lines: list[str], source: Any) -> None:
        delimiter = source.delimiter or _delimiter(lines)
        self._long = delimiter if len(delimiter) > 1 else None  # :: becomes one character that text does not have
        self._delimiter = "\x1f" if self._long else delimiter
        self.blanks = self._kind == "atomic"
        plain = self._long or self.blanks
        self._quoting = not plain
        self._form: dict[str, Any] = {"delimiter": self._delimiter, "quoting": csv.QUOTE_NONE if plain else 0}
        if self._long:
            lines = [line.replace(self._long, "\x1f") for line in lines]
        rows = [row for row in csv.reader(lines, **self._form) if row]
        first = [re.sub(r":(token|float)(_seq)?$", "", cell.strip()) for cell in rows[0]]
        header = source.header
        if header is None:
            header = first == list(source.columns) if source.columns else not any(map(_VALUE.fullmatch, first))
        self.nameless = not header and not source.columns
        body = rows[1:] if header else rows
        width = len(first)
        if len(first) == len(body[0] if body else first) - 1 and body[0][-1] == "":  # rows end in a separator
            width += 1
        names = list(source.columns or (first if header else map(str, range(1, width + 1))))
        if self.nameless and isinstance(source, Source) and not (source.user or source.item) and width in _USUAL_ORDER:
            names = _USUAL_ORDER[width].split()
        if len(names) > width:
            raise UserError(f"{self._path}:1: {width} columns, and {len(names)} names of columns: {', '.join(names)}")
        names += [f"column {number}" for number in range(len(names) + 1, width + 1)]
        self.names = [name if name not in names[:at] else f"{name}.{at + 1}" for at, name in enumerate(names)]
        self._skip = self._empty + 1 if header else 0
        self.head = [dict(zip(self.names, row, strict=False)) for row in body[:100]]

    def _fast(self, block: bytes, wanted: Sequence[str]) -> pa.Table | None:
        quoted = b'"' in block and self._quoting
        if block.startswith((b"\n", b"\r")) or b"\n\n" in block or b"\n\r" in block or b"\0" in block:
            return None  # empty lines: pyarrow would not count them
        if block.count(b"\r") != block.count(b"\r\n") or (quoted and _breaks_in_quotes(block)):
            return None
        try:
            block.isascii() or block.decode()
            block = block.replace(self._long.encode(), b"\x1f") if self._long else block
            options = arrow_csv.ParseOptions(delimiter=self._delimiter, quote_char='"' if self._quoting else False)
            types = dict.fromkeys(wanted, pa.string())
            return arrow_csv.read_csv(
                pa.BufferReader(block),
                arrow_csv.ReadOptions(column_names=self.names, block_size=max(len(block), 1) + 1),
                options,
                arrow_csv.ConvertOptions(column_types=types, include_columns=list(wanted), check_utf8=False),
            )
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None

    def _records(self, lines: list[str], ended: bool, wanted: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
        width, at = len(self.names), [self.names.index(name) for name in wanted]
        number = 0
        while number < len(lines):
            near = lines[number : number + _LONGEST_RECORD]
            if self._long:
                near = [near[0].replace(self._long, "\x1f")]
            row, taken = _parse(near, self._form)
            if taken > 1 and "".join(near[:taken]).count('"') % 2:
                if not ended and taken == len(near) < _LONGEST_RECORD:
                    return  # the rest of the row is in the next block
                row, taken = _parse(near[:1], self._form)
            if row and len(row) == width + 1 and row[-1] == "":
                row.pop()
            elif len(row) == width - 1 and self.names[-1] in ("", f"column {width}"):
                row.append("")
            if len(row) == width:
                yield number, taken, [row[column] for column in at]
            elif row:
                taken = 1
                yield number, 1, f"{len(row)} column(s), {width} expected"
            number += taken


def _parse(lines: list[str], form: dict[str, Any]) -> tuple[list[str], int]:
    """The first row of `lines` and how many lines it takes. An empty line gives an empty row."""
    reader = csv.reader(lines, **form)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        return [one_line(error)], 1


def _delimiter(lines: list[str]) -> str:
    """The separator that splits the first lines into equally many columns, as many as possible."""
    counts = {sign: [line.count(sign) for line in lines[:50]] for sign in ("\t", "::", ",", ";", "|")}
    return max(counts, key=lambda sign: (min(counts[sign]) > 0, counts[sign][0] > 0, sign != "|", counts[sign][0]))


def _breaks_in_quotes(block: bytes) -> bool:
    """Whether a line has an odd number of quotation marks, as where a quoted field goes on in the next line."""
    letters = np.frombuffer(block, np.uint8)
    before = np.searchsorted(np.flatnonzero(letters == ord('"')), np.flatnonzero(letters == ord("\n")))
    return bool((before % 2).any() or block.count(b'"') % 2)


class _Json(_Lines):
    def _begin(self, lines: list[str], source: Any) -> None:
        self._lists = isinstance(source, ItemSource)  # of categories
        for self._literals in (source.python_literals, True):
            rows = [row for row in map(self._object, lines[:100]) if isinstance(row, dict)]
            if rows:
                break
        if not rows or lines[0].startswith("["):  # one list of all objects
            problem = "begins a list" if lines[0].startswith("[") else self._object(lines[0])
            raise UserError(f"{self._path}:1: {problem}; one JSON object per line is expected")
        self.names = list({name: None for row in rows for name in row})
        self.head = rows
        kinds = {name: {type(row.get(name)) for row in rows} for name in self.names}
        arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        self._types = {name: arrow[kind] for name, (kind, *more) in kinds.items() if kind in arrow and not more}

    def _object(self, line: str) -> dict[str, Any] | str:
        try:
            row = ast.literal_eval(line.strip()) if self._literals else json.loads(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
            return f"not {'a Python literal' if self._literals else 'JSON'} ({one_line(error)[:100]})"
        return row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"

    def _fast(self, block: bytes, wanted: Sequence[str]) -> pa.Table | None:
        if self._literals or any(name not in self._types for name in wanted):
            return None
        schema = pa.schema([(name, self._types[name]) for name in wanted])
        try:
            block.isascii() or block.decode()
            table = arrow_json.read_json(
                pa.BufferReader(block),
                arrow_json.ReadOptions(block_size=len(block) + 1),
                arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        return table.select(wanted) if table.num_rows == lines else None

    def _records(self, lines: list[str], ended: bool, wanted: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
        for number, line in enumerate(lines):
            if line.strip():
                row = self._object(line)
                cells = row if isinstance(row, str) else [row.get(name) for name in wanted]
                if not self._lists and any(isinstance(cell, list | dict) for cell in cells):
                    cells = "a list or an object, where one value is expected"
                yield number, 1, cells
