"""Interactions between raw file and atomic file: on disk as numbers, 24 bytes each, ids in two vocabularies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_sigma.convert.columns import Times, as_text, numbers, same_digits
from recbole_sigma.convert.reader import BadLines, Block

_UNSAFE = r'[\x00-\x1f\x7f]|^"'
_COLUMNS = {"user": np.int32, "item": np.int32, "time": np.int64, "rating": np.float64}
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {127: 0x2421}  # tab -> the sign for a tab


def safe(token: str) -> str:
    """An id that breaks neither a line nor a column: control characters as their visible signs, no quote in front."""
    token = token.translate(_VISIBLE)
    return "\u201c" + token[1:] if token.startswith('"') else token


class Vocabulary:
    """Ids as numbers from 0, in the order of first appearance."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def encode(self, text: pa.Array) -> np.ndarray:
        """(n,) int32, -1 for a missing id."""
        different = text.dictionary_encode()
        tokens = different.dictionary.to_pylist()
        if pc.any(pc.match_substring_regex(different.dictionary, _UNSAFE)).as_py():
            tokens = list(map(safe, tokens))
        number = self.number
        known = [number.setdefault(token, len(number)) if token else -1 for token in tokens]
        return np.array([*known, -1], dtype=np.int32)[different.indices.fill_null(len(known)).to_numpy()]

    def tokens(self) -> pa.Array:
        """All ids, in the order of their numbers."""
        return pa.array(self.number, pa.large_string())


class Spool:
    """Takes the blocks of a source and gives back its columns, memory-mapped."""

    def __init__(self, folder: Path, bad: BadLines, time_format: str | None = None) -> None:
        self.users, self.items, self.times = Vocabulary(), Vocabulary(), Times(time_format)
        self.rows = self.digits = 0
        self.rated = False  # whether there is any rating
        self._bad = bad
        self._paths = {name: folder / f"{name}.spool" for name in _COLUMNS}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        self._blocks: list[tuple[int, int]] = []  # rows, digits of their times

    def add(self, block: Block, columns: dict[str, str]) -> None:
        """Append the good rows of a block; `columns` says which column is what."""
        text = {role: as_text(block.table.column(name), name) for role, name in columns.items()}
        user, item = self.users.encode(text["user"]), self.items.encode(text["item"])
        rows, digits = len(user), 0
        time, no_time = np.arange(self.rows + 1, self.rows + rows + 1), np.zeros(rows, bool)
        rating, no_rating = np.full(rows, np.nan), no_time
        if "time" in text:
            time, no_time, digits = self.times.parse(text["time"])
        if "rating" in text:
            rating, no_rating = numbers(text["rating"])
            self.rated = self.rated or not np.isnan(rating).all()
        wrong = {"user": user < 0, "item": item < 0, "time": no_time, "rating": no_rating}
        good = ~np.logical_or.reduce(list(wrong.values()))
        bad = np.flatnonzero(~good)
        shown = bad[: self._bad.room]
        for row in shown:
            role = next(role for role in wrong if wrong[role][row])
            cell, name = text[role][row].as_py(), columns[role]
            date = self.times.format or "an ISO date (--time_format reads others, such as %m/%d/%Y)"
            right = {"time": date if self.times.dates else "a number", "rating": "a number"}.get(role, "an id")
            self._bad.add(block.where(row), f"{name} is {cell!r}, not {right}" if cell else f"{name} is missing")
        self._bad.count += len(bad) - len(shown)
        for name, values in {"user": user, "item": item, "time": time, "rating": rating}.items():
            values[good].astype(_COLUMNS[name], copy=False).tofile(self._files[name])
        self._blocks.append((int(good.sum()), digits))
        self.rows += self._blocks[-1][0]

    def columns(self) -> dict[str, np.ndarray]:
        """user, item, time and rating, (n,) each, once all blocks are added."""
        for file in self._files.values():
            file.close()
        found: dict[str, np.ndarray] = {
            name: np.memmap(self._paths[name], kind, "r+", shape=(self.rows,)) for name, kind in _COLUMNS.items()
        }
        self.digits = same_digits(found["time"], self._blocks)
        return found
