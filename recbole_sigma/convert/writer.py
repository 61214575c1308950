"""Atomic files, written in pieces."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_sigma.convert.columns import as_text
from recbole_sigma.convert.reader import BadLines, Reader
from recbole_sigma.convert.spool import Spool, safe

_PIECE = 1 << 19  # rows
_ITEM_ROLES = ("title", "categories")


def write_interactions(
    path: Path, spool: Spool, columns: dict[str, np.ndarray], rows: np.ndarray | range, advance: Callable[[int], object]
) -> dict[str, np.ndarray]:
    """Write `rows` of the spool in their order: user, item, rating if any, time. Returns which ids appear."""
    users, items = spool.users.tokens(), spool.items.tokens()
    rated = spool.rated
    header = ["user_id:token", "item_id:token", *(["rating:float"] if rated else []), "timestamp:float"]
    kept = {"user": np.zeros(len(users), bool), "item": np.zeros(len(items), bool)}
    with path.open("wb") as file:
        file.write("\t".join(header).encode() + b"\n")
        for first in range(0, len(rows), _PIECE):
            chosen = np.asarray(rows[first : first + _PIECE])
            piece = {name: values[chosen] for name, values in columns.items()}
            cells = [users.take(piece["user"]), items.take(piece["item"])]
            if rated:
                rating = pa.array(piece["rating"], from_pandas=True).cast(pa.large_string())
                cells.append(rating.fill_null(""))
            cells.append(pa.array(piece["time"]).cast(pa.large_string()))
            write_lines(file, cells)
            for name, seen in kept.items():
                seen[piece[name]] = True
            advance(len(piece["user"]))
    return kept


def write_lines(file: BinaryIO, cells: list[pa.Array]) -> None:
    """Write text columns as lines: the joined strings lie in one buffer already."""
    lines = pc.binary_join_element_wise(*cells, pa.scalar("\t", pa.large_string()))
    end = pa.scalar("\n", pa.large_string())
    lines = pc.binary_join_element_wise(lines, end, pa.scalar("", pa.large_string()))
    size = np.frombuffer(lines.buffers()[1], np.int64)[len(lines)]
    file.write(memoryview(lines.buffers()[2])[:size])


def write_items(path: Path, sources: list[tuple[Reader, dict[str, str]]], wanted: set[str], bad: BadLines) -> int:
    """Write title and categories of the items `wanted`, the first of each, in the order of the sources; how many."""
    roles = [role for role in _ITEM_ROLES if any(role in columns for _, columns in sources)]
    left = set(wanted)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(["item_id:token", *(f"{role}:token_seq" for role in roles)]) + "\n")
        for reader, columns in sources:
            for block in reader.blocks([*dict.fromkeys(columns.values())], bad, lambda taken: None):
                tokens = as_text(block.table.column(columns["item"]), columns["item"]).to_pylist()
                texts = {role: block.table.column(columns[role]).to_pylist() for role in roles if role in columns}
                for row, token in enumerate(tokens):
                    if (token := safe(token or "")) not in left:
                        continue
                    title, categories = ((texts[role][row] if role in texts else "") or "" for role in _ITEM_ROLES)
                    categories = _words(categories) if reader.blanks else _categories(categories)
                    cells = {"title": _words(title), "categories": categories}
                    if any(cells[role] for role in roles):
                        left.remove(token)
                        file.write("\t".join([token, *(cells[role] for role in roles)]) + "\n")
    return len(wanted) - len(left)


def _words(text: Any) -> str:
    """Text in one line, its words separated by single blanks."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", str(text)).split())
    return "\u201c" + line[1:] if line.startswith('"') else line


def _categories(value: Any) -> str:
    """Categories separated by blanks; a blank inside one becomes an underscore. Lists in lists count as one list."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = ast.literal_eval(value)  # also what JSON says of lists of text
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                value = value.strip("[] ")
        if isinstance(value, str):
            value = re.split(r"\s*[|;]\s*" if re.search("[|;]", value) else r"\s*,\s*", value)
    flat: dict[str, None] = {}
    left = [value]
    while left:
        each = left.pop(0)
        if isinstance(each, list | tuple):
            left = [*each, *left]
        elif word := _words(each if each is not None else "").replace(" ", "_"):
            flat[word] = None
    return " ".join(flat)
