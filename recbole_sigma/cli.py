"""The command line: `recbole-sigma <command>`; `run_recbole_sigma.py` is its `train`.

Exit status: 0 done, 2 a mistake of the user's (one line on stderr), 130 interrupted.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from recbole_sigma import __version__
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.commands import add_compare, add_experiment
from recbole_sigma.experiment.report_command import add_report
from recbole_sigma.experiment.tune_command import add_tune
from recbole_sigma.settings import parse_overrides, read_config_files

if TYPE_CHECKING:
    from recbole_sigma.quick_start import RunResult

_PROGRAM = "recbole-sigma"
_DEFAULT_MODEL = "SIGMA"
_DEFAULT_DATASET = "ml-100k"  # inside RecBole's wheel: the first run needs no download

_TRAIN_EXAMPLES = """
  --model=NAME             a model, as the papers write it (SIGMA)
  --dataset=NAME           a folder in data_path, or ml-100k, which RecBole brings along (ml-100k)
  --data_path=FOLDER       where data sets are (dataset/)
  --config_files=A,B       YAML files of settings; a later file wins, and the command line over all
  --resume=RUN_DIR         go on with a run that was ended, after its last complete epoch
  --SETTING=VALUE          any setting; the value is read as YAML. Settings and defaults stand in properties/

examples:
  recbole-sigma train
  recbole-sigma train --model=Mamba4Rec --dataset=amazon-beauty --data_path=data
      reads data/amazon-beauty/amazon-beauty.inter
  recbole-sigma train --model=SIGMA --form=released --learning_rate=0.0005 --use_gpu=False
  recbole-sigma train --config_files=base.yaml,tuned.yaml --epochs=50
  recbole-sigma train --nproc=2
      two processes share every batch; torchrun --nproc-per-node=2 run_recbole_sigma.py does the same
  recbole-sigma train --resume=saved/SIGMA-ml-100k-20260101-120000-abcdef
"""


_MODELS_EXAMPLES = """
examples:
  recbole-sigma models
  recbole-sigma models SIGMA
  recbole-sigma models --items=50000
"""


_ENV_EXAMPLES = """
examples:
  recbole-sigma env
  recbole-sigma env --json
      for a program, or for a report of a problem
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as UserErrors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. `argv` defaults to the process's arguments."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice is as good as Ctrl-C
    try:
        args, rest = _parser().parse_known_args(argv)
        command: Callable[[argparse.Namespace, list[str]], None] = args.run
        command(args, rest)
        sys.stdout.flush()  # a closed pipe shows here rather than when Python ends
    except UserError as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as end:
        print(f"{_PROGRAM}: interrupted; go on with: {end.how}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output went away: nothing to say, and nothing left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog=_PROGRAM,
        description="State-space sequential recommenders inside RecBole.",
        epilog="'recbole-sigma <command> --help' says more about one command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True, parser_class=_Parser)
    _add_train(commands)
    _add_models(commands)
    add_compare(commands)
    add_experiment(commands)
    add_tune(commands)
    add_report(commands)
    _add_env(commands)
    return parser


def _add_train(commands: "argparse._SubParsersAction[_Parser]") -> None:
    train = commands.add_parser(
        "train",
        help="train and evaluate one model",
        description="Train one model on one data set; print its metrics and, last, the folder of the run.",
        usage=f"{_PROGRAM} train [--model=NAME] [--dataset=NAME] [--config_files=A,B] [--SETTING=VALUE ...]",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.set_defaults(run=_train)


def _add_models(commands: "argparse._SubParsersAction[_Parser]") -> None:
    models = commands.add_parser(
        "models",
        help="list the models, or one model's settings",
        description="List the models with paper, number of parameters and defaults; with NAME, one model's settings.",
        epilog=_MODELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models.add_argument("name", nargs="?", metavar="NAME", help="a model, as the papers write it")
    models.add_argument("--items", type=int, metavar="N", help="items to count parameters for (as amazon-beauty has)")
    models.set_defaults(run=_models)


def _models(args: argparse.Namespace, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"models takes a NAME and --items=N, got {rest[0]!r}")
    if args.items is not None and args.items < 1:
        raise UserError(f"--items must be at least 1, got {args.items}")
    from recbole_sigma.catalogue import AMAZON_BEAUTY_ITEMS, model_page, models_table

    items = args.items or AMAZON_BEAUTY_ITEMS
    print(model_page(args.name, items) if args.name else models_table(items))


def _add_env(commands: "argparse._SubParsersAction[_Parser]") -> None:
    env = commands.add_parser(
        "env",
        help="versions, devices, and whether the kernels answer",
        description="Tell what a run would find here: versions, devices, and whether scan and convolution work on "
        "each, called on a few numbers and compared with their reference; where not, the command that mends it.",
        epilog=_ENV_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    env.add_argument("--json", action="store_true", help="as JSON")
    env.set_defaults(run=_env)


def _env(args: argparse.Namespace, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"env takes --json, got {rest[0]!r}")
    from recbole_sigma.environment import as_text, environment

    found = environment()
    print(json.dumps(found, indent=2) if args.json else as_text(found))


def _train(args: argparse.Namespace, rest: Sequence[str]) -> None:
    settings = parse_overrides(rest)
    if "resume" in settings:
        _resume(settings)
        return
    files = _file_names(settings.pop("config_files", None))
    in_files = read_config_files(files)

    def chosen(key: str, default: str) -> str:
        name = settings.pop(key) if key in settings else in_files[key].value if key in in_files else default
        if not isinstance(name, str):
            raise UserError(f"--{key} must be a name, got {name!r}")
        return name

    model, dataset = chosen("model", _DEFAULT_MODEL), chosen("dataset", _DEFAULT_DATASET)
    from recbole_sigma.quick_start import run  # a mistake in the arguments is told before this import's seconds

    _print_result(run(model, dataset, config_files=files, settings=settings))


def _resume(settings: dict[str, Any]) -> None:
    folder = settings.pop("resume")
    if not isinstance(folder, str) or not folder:
        raise UserError(f"--resume must be the folder of a run, got {folder!r}")
    if "config_files" in settings:
        raise UserError("--config_files: a resumed run keeps the settings in its config.yaml; leave it out")
    from recbole_sigma.quick_start import resume

    _print_result(resume(folder, settings))


def _file_names(value: Any) -> list[str]:
    """The files of `--config_files=a.yaml,b.yaml`, where RecBole separates them by spaces."""
    names = value if isinstance(value, list) else str(value or "").replace(",", " ").split()
    return [str(name) for name in names]


def _print_result(result: "RunResult") -> None:
    """Each metric on validation and test side by side; the run's folder in the last line."""
    from tabulate import tabulate

    rows = [[_title(metric), result.valid[metric], result.test[metric]] for metric in result.test]
    print(tabulate(rows, headers=["", "valid", "test"], floatfmt=".4f"))
    print(result.folder)


def _title(metric: str) -> str:
    """RecBole's `hit@10` is the papers' HR@10."""
    name, _, k = metric.partition("@")
    return f"{'HR' if name == 'hit' else name.upper()}@{k}"


if __name__ == "__main__":
    sys.exit(main())
