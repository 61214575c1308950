"""recbole-sigma recommend --checkpoint=RUN (--history="A B C" | --input=FILE --output=FILE) [--k=N] ...

Recommend items with a trained model, to any user: the run directory is all it needs.

  --checkpoint=RUN             a run directory
  --history="A B C"            item ids of one history, oldest first; prints its list
  --input=FILE --output=FILE   many histories: .jsonl, .csv or .parquet with the columns history and, optional, user_id;
                               the same command resumes what was interrupted
  --k=N                        items per history (10)
  --exclude_seen=False         may recommend the items of the history, too
  --candidates="A B C"         the only items that may be recommended
  --on_unknown=error           refuse item ids that the model does not know (skip)
  --use_gpu=False              compute on the CPU
  --model=package.module:Class confirms the import of a model of your own
  --engine=ray --jobs=N        with --input: on the cluster that RAY_ADDRESS names, or a local one; N workers (1)

examples:
  recbole-sigma recommend --checkpoint=saved/SIGMA-ml-100k-... --history="50 181 1" --k=5
  recbole-sigma recommend --checkpoint=RUN --input=histories.jsonl --output=lists.parquet
      histories.jsonl has lines such as {"user_id": "u1", "history": ["A", "B"]}
  recbole-sigma recommend --checkpoint=RUN --input=histories.csv --output=lists.csv --engine=ray --jobs=2
"""

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.errors import UserError

KINDS = (".jsonl", ".csv", ".parquet")


def main(argv: Sequence[str]) -> None:
    """Print one history's list, or answer a file of histories."""
    parser = options.command_parser(__doc__)
    for name in ("--history", "--candidates"):  # item ids are text, whatever they look like
        parser.add_argument(name, help=SUPPRESS)
    for name in ("--input", "--output"):
        parser.add_argument(name, type=Path, help=SUPPRESS)
    args, settings = options.parse(parser, argv)
    checkpoint = Path(options.directory(settings, "checkpoint", "config.yaml"))
    defaults = {"k": 10, "exclude_seen": True, "on_unknown": "skip", "engine": "local", "jobs": 1, "use_gpu": True}
    chosen = {name: options.option(settings, name, default) for name, default in defaults.items()}
    model = settings.pop("model", None)
    if settings:
        raise UserError(f"recommend takes the options of --help, got --{next(iter(settings))}")
    if (args.history is None) == (args.input is None):
        raise UserError("recommend takes either --history or --input (with --output)")
    if args.input is not None:
        _check_files(args.input, args.output)
    elif args.output is not None or chosen["engine"] != "local":
        raise UserError("--output and --engine go with --input")
    if chosen["jobs"] != 1 and chosen["engine"] == "local":
        raise UserError("--jobs goes with --engine=ray")
    candidates = None if args.candidates is None else tuple(args.candidates.split())
    device = None if chosen["use_gpu"] else "cpu"

    from recbole_sigma.inference.recommender import Recommender

    recommender = Recommender.load(checkpoint, device, model)
    how = {name: chosen[name] for name in ("k", "exclude_seen", "on_unknown")} | {"candidates": candidates}
    if args.history is not None:
        _print_list(recommender, args.history.split(), how)
        return
    from recbole_sigma.inference import batches

    request = batches.Request(args.output.suffix[1:], **how)
    engine = batches.on_this_machine(recommender, request)
    if chosen["engine"] == "ray":
        try:
            engine = batches.on_ray(checkpoint, request, chosen["jobs"], device, model)
        except ImportError:
            raise UserError("--engine=ray: ray is not installed; pip install 'recbole-sigma[tune]'") from None
    print(f"{batches.recommend_file(recommender, args.input, args.output, request, engine)}\n{args.output}")


def _check_files(source: Path, output: Path | None) -> None:
    if output is None:
        raise UserError("--input needs --output=FILE")
    for name, path in (("--input", source), ("--output", output)):
        if path.suffix not in KINDS:
            raise UserError(f"{name}: the file's name must end in {', '.join(KINDS)}, got {str(path)!r}")
    if not source.is_file():
        raise UserError(f"--input: there is no file {str(source)!r}")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output: there is no directory {str(output.parent)!r}")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output: {str(output)!r} is the input")


def _print_list(recommender: Any, history: list[str], how: dict[str, Any]) -> None:
    """One history's list as a table."""
    from recbole_sigma.commands.terminal import table

    (best,) = recommender.recommend([history], **how)
    titles = recommender.titles
    headers = ["rank", "item", "title", "score"] if titles else ["rank", "item", "score"]
    rows: list[list[Any]] = [[rank, item, titles.get(item, ""), score] for rank, (item, score) in enumerate(best, 1)]
    print(table(headers, rows if titles else [[rank, item, score] for rank, item, _, score in rows]))
