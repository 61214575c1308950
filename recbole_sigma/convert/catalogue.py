"""The data sets that can be got by name: those of properties/dataset/, and RecBole's own list.

A file `properties/dataset/NAME.yaml` holds settings of the data set and, under the key `catalogue`, where it comes
from. A file that lists `categories` stands for one data set per category, which replaces CATEGORY in its name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recbole_sigma.config.values import CATALOGUE, properties_path, read_config_file, recbole_path
from recbole_sigma.convert.formats import Filters, ItemSource, Source
from recbole_sigma.errors import one_line


@dataclass(frozen=True)
class Origin:
    """One address of a data set, and the form of its files: `paths` are patterns of names, such as `*.inter`."""

    interactions: Source
    items: ItemSource | None = None
    url: str = ""  # empty: the publisher gives the file out by hand, after a form for example
    megabytes: float = 0  # of the download, about; 0: not known
    sha256: str | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the names of all files that are read."""
        return tuple(map(str, (*self.interactions.paths, *(self.items.paths if self.items else ()))))


@dataclass(frozen=True)
class Entry:
    """What is known about one data set."""

    name: str
    title: str
    page: str = ""  # of the publisher
    licence: str = ""
    papers: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()  # tried in this order
    filters: Filters | None = None  # None: files in RecBole's format are kept as they are
    expected: Mapping[str, int] | None = None  # users, items, interactions
    note: str = ""  # a sentence about what the numbers do not say
    family: str = ""  # the name of the file that lists it as one of several categories


@cache
def entries() -> dict[str, Entry]:
    """All known data sets by name: ours, then those that only RecBole lists. Raises UserError for a wrong file."""
    found: dict[str, Entry] = {}
    for file in sorted((properties_path() / "dataset").glob("*.yaml")):
        given = read_config_file(file).get(CATALOGUE)
        if given is None:  # a file of settings only
            continue
        try:
            content = dict(given.value)
            for category in content.pop("categories", [None]):
                filled = json.loads(json.dumps(content).replace("{category}", str(category)))
                short = str(category).lower().replace("_", "-")
                name = file.stem.replace("CATEGORY", short)
                found[name] = _entry(name, filled | ({"family": file.stem} if category else {}))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise given.error(f"{CATALOGUE}: {type(error).__name__}: {one_line(error)}") from None
    kept = {"paths": [f"*.{ending}" for ending in ("inter", "item", "user", "kg", "link", "net")]}
    for name in _recbole_urls():
        theirs = {"title": "RecBole's archive", "sources": [{"recbole": name, "interactions": kept}]}
        found.setdefault(name, _entry(name, theirs))
    return found


@cache
def _recbole_urls() -> dict[str, str]:
    file = recbole_path() / "properties" / "dataset" / "url.yaml"
    return {name: str(given.value) for name, given in read_config_file(file).items()}


def _entry(name: str, content: Mapping[str, Any]) -> Entry:
    """From the `catalogue` of a file. Raises TypeError, ValueError, KeyError or AttributeError for a wrong one."""
    values = dict(content)
    origins = tuple(map(_origin, values.pop("sources", ())))
    filters = values.pop("filters", None)
    papers = tuple(values.pop("papers", ()))
    return Entry(name=name, origins=origins, filters=filters and Filters(**filters), papers=papers, **values)


def _origin(content: Mapping[str, Any]) -> Origin:
    values = dict(content)
    interactions, items = values.pop("interactions", {}), values.pop("items", None)
    if recbole := values.pop("recbole", None):  # its archive of atomic files
        values["url"] = _recbole_urls()[recbole]
        interactions = {"paths": ["*.inter"], "kind": "atomic"} | interactions
    return Origin(_form(Source, interactions), items and _form(ItemSource, items), **values)


def _form(kind: type[Any], content: Mapping[str, Any]) -> Any:
    """A Source or ItemSource from YAML's values."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return kind(**values | {"paths": tuple(map(Path, values["paths"]))})
