"""recbole-sigma convert SOURCE [SOURCE ...] --out=dataset/NAME [--user=COLUMN --item=COLUMN --time=COLUMN ...]

Your own interactions as a data set: CSV, TSV, JSON lines or Parquet, also .gz, .zst and .bz2, to be trained on with
--dataset=NAME. Columns with usual names (user_id, asin, timestamp, ...) are found; the output says which they are.

  --out=FOLDER             the data set's directory; its name is the data set's
  --user, --item=COLUMN    ids; in a file without a header 1, 2, ... are columns
  --time=COLUMN            ISO dates or numbers in any unit; without one, or with none, the order of the file counts
  --time_format=FORMAT     of other dates: '%m/%d/%Y', '%b %d, %Y'
  --rating=COLUMN          numbers, kept beside the interactions; none: they are left out
  --items=FILE             titles and categories, for NAME.item; a file in any of the forms (SOURCE, with --title)
  --item_id, --title, --categories=COLUMN  in that file
  --k_core=K               only users and items with at least K interactions, counted until nothing changes
  --min_rating=NUMBER      only interactions with at least this rating
  --duplicates=first|last  of a user's interactions with one item, only the first or last in time (keep: all)
  --kind=csv|jsonl|parquet|atomic  of the files, where the name does not say it
  --delimiter=TEXT         between columns, such as ';', '::' or tab
  --columns=NAME,NAME,...  names of all columns, for a file without a header
  --python_literals        lines such as {'a': 1}, which are not JSON
  --strict                 refuse the first bad line; else bad lines are counted, left out, and the first ones shown
  --overwrite              replace the files of a directory that exists

examples:
  recbole-sigma convert clicks.csv --out=dataset/clicks
  recbole-sigma convert reviews.json.gz --out=dataset/beauty --k_core=5
  recbole-sigma convert ratings.dat --out=dataset/ml-1m --items=movies.dat --item_id=1 --title=2 --categories=3
      RecBole's own loader reads the result, too
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.commands.terminal import table
from recbole_sigma.config.early import check_dataset
from recbole_sigma.convert.formats import Filters, ItemSource, Source, Summary
from recbole_sigma.errors import UserError

_TEXT = (
    "user",
    "item",
    "time",
    "rating",
    "items",
    "item_id",
    "title",
    "categories",
    "columns",
    "delimiter",
    "time_format",
)


def main(argv: Sequence[str]) -> None:
    """Convert, and print what was found, as SIGMA's Table 1 does."""
    parser = options.command_parser(__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="file with interactions")
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}  # the module's docstring explains them
    parser.add_argument("--out", **hidden)
    for name in _TEXT:
        parser.add_argument(f"--{name}", **hidden)
    parser.add_argument("--kind", choices=("csv", "jsonl", "parquet", "atomic"), **hidden)
    parser.add_argument("--k_core", type=int, default=0, **hidden)
    parser.add_argument("--min_rating", type=float, **hidden)
    parser.add_argument("--duplicates", choices=("keep", "first", "last"), default="keep", **hidden)
    for flag in ("python_literals", "strict", "overwrite"):
        parser.add_argument(f"--{flag}", action="store_true", **hidden)
    args, _ = options.parse(parser, argv, no_settings="convert takes files and the options of 'convert --help'")
    if not args.sources:
        raise UserError("convert: give the file, as in 'recbole-sigma convert clicks.csv --out=dataset/NAME'")
    if not args.out:
        raise UserError("convert: give --out=dataset/NAME, the directory of the new data set")
    out = Path(args.out)
    check_dataset(out.absolute().name)
    paths, columns = tuple(map(Path, args.sources)), tuple(args.columns.split(",")) if args.columns else None
    delimiter = {"\\t": "\t", "tab": "\t"}.get(args.delimiter, args.delimiter)
    form: dict[str, Any] = {"kind": args.kind, "delimiter": delimiter, "columns": columns}
    named = {name: getattr(args, name) for name in ("user", "item", "time", "rating", "time_format")}
    source = Source(paths, **form, **named)
    about = None
    items = (
        Path(args.items) if args.items else paths[0] if len(paths) == 1 and (args.title or args.categories) else None
    )
    if items:
        about, item = (ItemSource((items,), **form), args.item) if items in paths else (ItemSource((items,)), None)
        about = replace(about, item=args.item_id or item, title=args.title, categories=args.categories)
    elif args.title or args.categories or args.item_id:
        raise UserError("--item_id, --title, --categories: give --items=FILE, which has these columns")
    if args.python_literals:
        source, about = replace(source, python_literals=True), about and replace(about, python_literals=True)

    from recbole_sigma.convert import convert

    filters = Filters(args.k_core, args.min_rating, args.duplicates)
    print_summary(out, convert(source, out, filters, about, strict=args.strict, overwrite=args.overwrite))


def print_summary(out: Path, made: Summary) -> None:
    """Statistics, what was guessed, bad lines, and how to train."""
    mean, sparsity = f"{made.mean_length:.2f}", f"{made.sparsity:.2%}"
    rows: list[list[str | int | float]] = [
        [out.absolute().name, made.users, made.items, made.interactions, mean, sparsity]
    ]
    print(table(["data set", "users", "items", "interactions", "mean length", "sparsity"], rows))
    print()
    for note in made.notes:
        print(note)
    if made.bad_lines:
        print(f"bad lines: {made.bad_lines:,}, left out; the first:")
        print("\n".join(f"  {line}" for line in made.first_bad))
    path = [] if out.parent == Path("dataset") else [f"--data_path={out.absolute().parent}"]
    command = ["recbole-sigma", "train", "--model=SIGMA", f"--dataset={out.absolute().name}", *path]
    print(f"train: {shlex.join(command)}")
