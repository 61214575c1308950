"""What a conversion reads, keeps and reports: plain values that the command line and properties/dataset/ fill in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Raw interactions: one file, or several of the same form that are read one after the other.

    Columns are names in the header (keys in JSON lines), or numbers from 1 as text, `"2"`. None: guessed.
    """

    paths: tuple[Path, ...]
    kind: Literal["csv", "jsonl", "parquet", "atomic"] | None = None  # None: by the name, before .gz, .zst or .bz2
    delimiter: str | None = None  # of several letters, too: "::"
    header: bool | None = None
    columns: tuple[str, ...] | None = None  # the names of all columns, for a file without a header
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    time_format: str | None = None  # of dates that are not ISO dates: "%m/%d/%Y"
    python_literals: bool = False  # lines such as {'a': 1}, which are not JSON


@dataclass(frozen=True)
class ItemSource:
    """What is known about the items: titles and categories. Item ids that the interactions lack are left out."""

    paths: tuple[Path, ...]
    kind: Literal["csv", "jsonl", "parquet", "atomic"] | None = None
    delimiter: str | None = None
    header: bool | None = None
    columns: tuple[str, ...] | None = None
    item: str | None = None
    title: str | None = None
    categories: str | None = None  # a list, or text separated by | or commas
    python_literals: bool = False


@dataclass(frozen=True)
class Filters:
    """Which interactions are kept: first by rating, then one of equal (user, item) pairs, then the k-core."""

    k_core: int = 0  # every user and every item has at least so many interactions
    min_rating: float | None = None
    duplicates: Literal["keep", "first", "last"] = "keep"  # of a pair, in the order of time


@dataclass(frozen=True)
class Summary:
    """The result of a conversion: statistics as in SIGMA's Table 1, and what was found on the way."""

    users: int
    items: int
    interactions: int
    mean_length: float
    sparsity: float
    bad_lines: int = 0
    first_bad: tuple[str, ...] = ()  # "FILE:LINE: what is wrong"
    notes: tuple[str, ...] = ()  # sentences about what was guessed
