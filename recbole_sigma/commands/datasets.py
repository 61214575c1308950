"""recbole-sigma datasets [NAME | get NAME [--from=FILE|URL]] [--data_path=FOLDER] [--download=true|false]

List the data sets that are known by name; with NAME, where one comes from, its filters and its papers; with get, make
its directory in data_path. `train` and all other commands do the same for a --dataset that is missing.

  --from=FILE|URL          use this archive, file or directory (of the publisher, or RecBole's) or this address
  --data_path=FOLDER       where data sets are (dataset/)
  --download=true|false    true: also more than 1 GB; false: never use the network

examples:
  recbole-sigma datasets
  recbole-sigma datasets amazon-beauty
  recbole-sigma datasets get ml-1m
  recbole-sigma datasets get yelp --from=yelp_dataset.tar
      for files that their publisher gives out after a form, or that were fetched on another machine
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from recbole_sigma.commands import options
from recbole_sigma.commands.terminal import WIDTH, table
from recbole_sigma.config.early import check_dataset, data_folder
from recbole_sigma.config.schema import check
from recbole_sigma.config.values import Given
from recbole_sigma.convert.catalogue import Entry, entries
from recbole_sigma.convert.get import RECORD, find, get, is_present
from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import read_json


def main(argv: Sequence[str]) -> None:
    """Print the table of data sets or the page of one, or get one and print its statistics and, last, its directory."""
    parser = options.command_parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="NAME | get NAME")
    parser.add_argument("--from", dest="given", default="", metavar="FILE|URL")
    args, settings = options.parse(parser, argv)
    data_path, download = settings.pop("data_path", "dataset/"), settings.pop("download", None)
    check("data_path", Given(data_path), "", {})
    check("download", Given(download), None, {})
    data_path = Path(data_path)
    if settings:
        raise UserError(f"datasets takes --from, --data_path and --download, got --{next(iter(settings))}")
    if len(args.words) == 2 and args.words[0] == "get":
        _get(args.words[1], data_path, download, args.given)
    elif args.given or len(args.words) > 1 or args.words == ["get"]:
        wrong = " ".join(args.words) or "no name"
        raise UserError(f"datasets takes a NAME, or 'get NAME' and then --from=FILE if need be; got {wrong!r}")
    elif args.words:
        _show(find(args.words[0], data_path), data_path)
    else:
        _list(data_path)


def _get(name: str, data_path: Path, download: bool | None, given: str) -> None:
    check_dataset(name)
    if given and name not in entries():
        raise UserError(f"unknown data set {name!r}; a file of your own: recbole-sigma convert {given} --out=FOLDER")
    if given and is_present(name, data_path):
        raise UserError(f"{data_path / name} is there already; delete it to make it from {given}")
    part_of_recbole = name == "ml-100k" and not given
    folder, summary = (data_folder(name, data_path), None) if part_of_recbole else get(name, data_path, download, given)
    if summary:
        numbers = (summary.users, summary.items, summary.interactions, summary.mean_length, f"{summary.sparsity:.2%}")
        print(table(["users", "items", "interactions", "mean length", "sparsity"], [numbers]))
    print(folder)


def _list(data_path: Path) -> None:
    rows: dict[str, list[str | int]] = {}
    for name, entry in entries().items():
        here = name == "ml-100k" or is_present(name, data_path)
        if here or (entry.page and not entry.family):
            rows[name] = [name, *_row(entry), "yes" if here else ""]
        elif entry.family:
            rows.setdefault(entry.family, [entry.family, *_row(entry), ""])
    print(table(["name", "users", "items", "interactions", "download", "licence", "here"], list(rows.values())))
    print(f"\nhere: in {data_path}. Numbers: after the papers' filters. CATEGORY: as in amazon-2023-video-games.")
    theirs = ", ".join(name for name, entry in entries().items() if not entry.page)
    print(textwrap.fill(f"RecBole's archives, unfiltered: {theirs}", WIDTH, break_on_hyphens=False))


def _row(entry: Entry) -> list[str]:
    numbers = [f"{entry.expected[key]:,}" if entry.expected else "" for key in ("users", "items", "interactions")]
    addresses = [origin for origin in entry.origins if origin.url]
    size = f"{addresses[0].megabytes:,} MB" if addresses and addresses[0].megabytes else ""
    return [*numbers, size if addresses else "by hand", entry.licence]


def _show(entry: Entry, data_path: Path) -> None:
    """What is known about a data set and, where it is present, how it was made."""
    about: dict[str, Any] = {key: getattr(entry, key) for key in ("title", "page", "licence", "papers", "expected")}
    about["filters"] = entry.filters and asdict(entry.filters)
    about["sources"] = [origin.url or f"by hand: {', '.join(origin.patterns)}" for origin in entry.origins]
    about["note"] = entry.note
    folder = data_path / entry.name
    if entry.name == "ml-100k" or is_present(entry.name, data_path):
        about["here"] = str(data_folder(entry.name, data_path, get=False))
    if (folder / RECORD).is_file():
        about["made from"] = read_json(folder / RECORD, dict)
    given = {key: value for key, value in about.items() if value}
    print(yaml.safe_dump({entry.name: given}, sort_keys=False, allow_unicode=True, width=math.inf), end="")
