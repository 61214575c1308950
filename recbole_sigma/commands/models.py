"""`recbole-sigma models`: the models that have defaults of their own, with paper, size and settings.

Nothing is listed by hand: models are the files of properties/model/, papers stand in their modules' docstrings, and
parameters are counted on a model that is built.
"""

import importlib
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from recbole_sigma import capacity
from recbole_sigma.capacity import Items
from recbole_sigma.commands import options
from recbole_sigma.config.config import Config, properties_path
from recbole_sigma.errors import UserError, did_you_mean
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.registry import find_model

WIDTH = 100
AMAZON_BEAUTY_ITEMS = 12_101
MOST_ITEMS = 10**12  # their embeddings are counted, not made

_PAPER = re.compile(r"\(([^()]*arXiv \d{4}\.\d{4,5})\)")
_SETTING = re.compile(r"(?P<name>\w+):\s+(?P<default>\S.*?)\s+#\s+\((?P<kind>\w+)\)\s+(?P<meaning>.+)")
_IN_SHORT = {
    "D": ("embedding_size", "hidden_size"),
    "layers": ("num_layers", "n_layers"),
    "dropout": ("dropout_prob", "hidden_dropout_prob"),
}


class Setting(NamedTuple):
    """One line of a file in properties/model/."""

    name: str
    default: str
    kind: str
    meaning: str


def catalogue() -> list[str]:
    """Names of the models with defaults of their own: those on our base class first."""
    names = sorted(file.stem for file in (properties_path() / "model").glob("*.yaml"))
    return sorted(names, key=lambda name: not issubclass(find_model(name), SequenceModel))


def paper(name: str) -> str:
    """Authors, venue and arXiv number, as far as the docstring of the model's module gives them in parentheses."""
    found = _PAPER.search(importlib.import_module(find_model(name).__module__).__doc__ or "")
    return found[1] if found else ""


def settings(name: str) -> list[Setting]:
    """A model's own settings in the order of its file."""
    lines = _file(name).read_text(encoding="utf-8").splitlines()
    return [Setting(**found.groupdict()) for found in map(_SETTING.fullmatch, lines) if found]


def remarks(name: str) -> str:
    """The comment at the head of a model's file: sources of its defaults."""
    lines = _file(name).read_text(encoding="utf-8").splitlines()
    head = lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return " ".join(line.lstrip("# ") for line in head)


def n_parameters(name: str, n_items: int) -> int:
    """Trained numbers of a model with default settings, for a data set of so many items."""
    if n_items > MOST_ITEMS:
        raise UserError(f"items must be at most {MOST_ITEMS:,}, got {n_items}")
    return capacity.n_parameters(Config(name, "", settings={"use_gpu": False}, need_data=False), Items(n_items))


def models_table(n_items: int = AMAZON_BEAUTY_ITEMS) -> str:
    """All models, one a line; lines of at most WIDTH characters."""
    rows = [[name, paper(name), n_parameters(name, n_items), _in_short(settings(name))] for name in catalogue()]
    table = tabulate(rows, headers=["model", "paper", "parameters", "defaults"], intfmt=",", disable_numparse=[3])
    return f"{table}\n\nparameters: on {n_items:,} items. D: width of the item embeddings."


def model_page(name: str, n_items: int = AMAZON_BEAUTY_ITEMS) -> str:
    """One model: paper, size, sources of its defaults, and each setting. Raises UserError for an unknown name."""
    known = catalogue()
    if name not in known:
        raise UserError(f"unknown model {name!r}{did_you_mean(name, known)} (one of {', '.join(known)})")
    own = settings(name)
    headers = ["setting", "default", "kind", "meaning"]
    widths = [max(len(title) + 2, *(len(row[column]) for row in own)) for column, title in enumerate(headers[:3])]
    rest = WIDTH - sum(widths) - 2 * len(widths)
    table = tabulate(own, headers=headers, disable_numparse=True, maxcolwidths=[None, None, None, rest])
    head = f"{name}: {paper(name)}\n{n_parameters(name, n_items):,} parameters on {n_items:,} items"
    return "\n\n".join([head, textwrap.fill(remarks(name), WIDTH), table])


def _file(name: str) -> Path:
    return properties_path() / "model" / f"{name}.yaml"


def _in_short(own: list[Setting]) -> str:
    """`D 64, layers 2, dropout 0.5`: of each kind the first setting that the model has."""
    values = {setting.name: setting.default for setting in own}
    found: list[tuple[str, Any]] = [
        (word, next((values[name] for name in names if name in values), None)) for word, names in _IN_SHORT.items()
    ]
    return ", ".join(f"{word} {value}" for word, value in found if value is not None)


_DETAILS = """
examples:
  recbole-sigma models
  recbole-sigma models SIGMA
  recbole-sigma models --items=50000
"""


def main(argv: Sequence[str]) -> None:
    """Print the table of models, or one model's page."""
    parser = options.command_parser(
        "models",
        "[NAME] [--items=N]",
        "List the models with paper, number of parameters and defaults; with NAME, one model's settings.",
        _DETAILS,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model, as the papers write it")
    parser.add_argument("--items", type=int, metavar="N", help="items to count parameters for (as amazon-beauty has)")
    args, settings = options.parse(parser, argv)
    if settings:
        raise UserError(f"models takes a NAME and --items=N, got --{next(iter(settings))}")
    if args.items is not None and args.items < 1:
        raise UserError(f"--items must be at least 1, got {args.items}")
    items = args.items or AMAZON_BEAUTY_ITEMS
    print(model_page(args.name, items) if args.name else models_table(items))
