"""recbole-sigma models [NAME] [--items=N]

List the models with paper, number of parameters and defaults; with NAME, one model's settings: one of those, one of
RecBole's sequential models, or package.module:Class.

examples:
  recbole-sigma models
  recbole-sigma models SIGMA
  recbole-sigma models Caser
  recbole-sigma models --items=50000
"""

import importlib
import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recbole_sigma.commands import options
from recbole_sigma.commands.terminal import WIDTH, table
from recbole_sigma.config.early import check_model
from recbole_sigma.config.values import properties_path, read_config_file
from recbole_sigma.errors import UserError

AMAZON_BEAUTY_ITEMS = 12_101
MOST_ITEMS = 10**12
_PAPER = re.compile(r"\(([^()]*arXiv \d{4}\.\d{4,5})\)")
_SETTING = re.compile(r"(\w+):\s+(\S.*?)\s+#\s+\((\w+)\)\s+(.+)")
_IN_SHORT = {  # of the settings with one word, the first that a model has
    "D": ("embedding_size", "hidden_size"), "layers": ("num_layers", "n_layers"),
    "dropout": ("dropout_prob", "hidden_dropout_prob"),
}  # fmt: skip


class Model(NamedTuple):
    """What `models` shows of one model; of each setting name, default, type and meaning, as its file says."""

    name: str
    paper: str
    n_parameters: int | None  # None if it depends on more than the number of items
    settings: list[tuple[str, ...]]
    sources: str


def main(argv: Sequence[str]) -> None:
    """Print the table of models, or one model's page."""
    parser = options.command_parser(__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model, as the papers write it")
    help_items = f"items to count parameters for ({AMAZON_BEAUTY_ITEMS}, as amazon-beauty has)"
    parser.add_argument("--items", type=int, default=AMAZON_BEAUTY_ITEMS, metavar="N", help=help_items)
    parser.add_argument("--model", dest="name", metavar="NAME", help="another way to write NAME")
    args, _ = options.parse(parser, argv, no_settings="models takes a NAME and --items=N")
    if not 1 <= args.items <= MOST_ITEMS:
        raise UserError(f"--items must be a number from 1 to {MOST_ITEMS:,}, got {args.items}")
    if args.name is not None:
        model = describe(args.name, args.items)
        count = "the number of parameters depends on the data"
        if model.n_parameters is not None:
            count = f"{model.n_parameters:,} parameters on {args.items:,} items"
        print(": ".join(filter(None, (model.name, model.paper))), count, sep="\n", end="\n\n")
        if model.sources:
            print(f"{textwrap.fill(model.sources, WIDTH)}\n")
        print(table(["setting", "default", "kind", "meaning"], model.settings))
        return
    rows: list[list[str | int]] = []
    for model in (describe(name, args.items) for name in catalogue()):
        default = {name: value for name, value, *_ in model.settings}
        values = {word: [default[name] for name in names if name in default] for word, names in _IN_SHORT.items()}
        short = ", ".join(f"{word} {value[0]}" for word, value in values.items() if value)
        rows.append([model.name, model.paper.rpartition(", ")[2], model.n_parameters or 0, short])
    print(table(["model", "source", "parameters", "defaults"], rows))
    print(f"\nparameters: on {args.items:,} items. D: width of the item embeddings.")


def catalogue() -> list[str]:
    """Names of the models with defaults of their own: those on our base class first."""
    from recbole_sigma.model.sequence import SequenceModel
    from recbole_sigma.registry import find_model

    names = sorted(file.stem for file in (properties_path() / "model").glob("*.yaml"))
    return sorted(names, key=lambda name: not issubclass(find_model(name), SequenceModel))


def describe(name: str, n_items: int) -> Model:
    """A model with default settings on `n_items` items. Raises UserError for an unknown name."""
    check_model(name)
    from recbole_sigma.config.config import Config, model_files
    from recbole_sigma.registry import find_model, n_parameters

    model_class = find_model(name)
    document = importlib.import_module(model_class.__module__).__doc__ or ""
    settings, comments = dict[str, tuple[str, ...]](), list[str]()
    ours = [properties_path() / "model" / f"{name}.yaml"]  # complete, unlike the files of other models
    for file in ours if ours[0].is_file() else filter(Path.is_file, model_files(model_class)):
        lines = file.read_text(encoding="utf-8").splitlines()
        comments = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
        settings |= {key: (key, str(given.value), "", "") for key, given in read_config_file(file).items()}
        settings |= {match[1]: match.groups() for match in map(_SETTING.fullmatch, lines) if match}
    try:
        count = n_parameters(Config(name, "", settings={"use_gpu": False}, need_data=False), n_items)
    except Exception:  # some of RecBole's and the user's own models ask the data for more than the number of items
        count = None
    paper = _PAPER.search(document)
    return Model(name, paper[1] if paper else "", count, [*settings.values()], " ".join(comments))
