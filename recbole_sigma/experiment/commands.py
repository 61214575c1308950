"""`recbole-sigma compare` and `experiment`: their options, and what they call. Light: what is slow is imported late."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.errors import UserError
from recbole_sigma.settings import command_line, parse_overrides

_PROGRAM = "recbole-sigma"
ENGINES = ("local", "ray")
_SHARED = """
  --jobs=N                 runs at the same time (1); each is a process, with its share of the cores
  --engine=local|ray       ray: on the cluster that RAY_ADDRESS names, or a local one of --jobs workers
  --out=FILE               report, FILE.md, .html, .csv and .tex (CHECKPOINT_DIR/NAME)
  --checkpoint_dir=FOLDER  where runs are kept (saved); one that is there already is not trained again
  --SETTING=VALUE          any setting, for all arms
"""
_COMPARE = f"""
  --models=A,B             models, as the papers write them
  --datasets=D,E           folders in data_path, or ml-100k (ml-100k)
  --seeds=N                how many (1: 2020), or which ([1,2,3])
{_SHARED.lstrip(chr(10))}
examples:
  recbole-sigma compare --models=SIGMA,Mamba4Rec,SASRec --seeds=3
  recbole-sigma compare --models=SIGMA,ECHO --datasets=amazon-beauty,yelp --data_path=data --seeds=5 --jobs=2
      stopped, or asked for more models or seeds, it trains what is missing
"""
_EXPERIMENT = f"""
  NAME                     one of those above, or a YAML file of arms as in properties/experiment/
  --dataset=D              data sets, with commas (as the experiment says)
  --seeds=N                how many, or which (as the experiment says)
{_SHARED.lstrip(chr(10))}  --rounds=N               efficiency: steps of each arm that are timed (20)
  --user=U                 case-study: the user, as in the data

examples:
  recbole-sigma experiment ablation --dataset=amazon-beauty --data_path=data --seeds=3
  recbole-sigma experiment flip-range --jobs=2
  recbole-sigma experiment efficiency --dataset=amazon-beauty --data_path=data --threads=2
  recbole-sigma experiment case-study --user=196
  recbole-sigma experiment mine.yaml
"""


def add_compare(commands: Any) -> None:
    """The parser of `compare`."""
    parser = commands.add_parser(
        "compare",
        help="train models on data sets with seeds, and report them side by side",
        description="Models side by side: trains what is missing, prints the table and, last, the report's file.",
        usage=f"{_PROGRAM} compare --models=A,B [--datasets=D,E] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]",
        epilog=_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_compare)


def add_experiment(commands: Any) -> None:
    """The parser of `experiment`."""
    parser = commands.add_parser(
        "experiment",
        help="an experiment of SIGMA's paper, or your own",
        description="Runs an experiment: ablation, case-study, depth, efficiency, flip-range, groups, mixing.",
        usage=f"{_PROGRAM} experiment NAME [--dataset=D] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]",
        epilog=_EXPERIMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help=argparse.SUPPRESS)
    parser.set_defaults(run=_experiment)


def _compare(_: argparse.Namespace, rest: Sequence[str]) -> None:
    settings = parse_overrides(rest)
    models = _names(settings.pop("models", None), "models", "as in --models=SIGMA,Mamba4Rec")
    datasets = _names(settings.pop("datasets", "ml-100k"), "datasets", "as in --datasets=amazon-beauty,yelp")
    from recbole_sigma.experiment.spec import comparison, seeds_of

    options = _options(settings, "compare")
    seeds = seeds_of(settings.pop("seeds", 1))
    _report(comparison(models, datasets, seeds, settings), options)


def _experiment(args: argparse.Namespace, rest: Sequence[str]) -> None:
    settings = parse_overrides(rest)
    given = settings.pop("dataset", None)
    datasets = [] if given is None else _names(given, "dataset", "as in --dataset=amazon-beauty")
    from recbole_sigma.experiment.spec import read_experiment, with_changes

    experiment = read_experiment(args.name)
    rounds = _count(settings, "rounds", 20)
    user = settings.pop("user", None)
    if (experiment.name == "case-study") != (user is not None):
        raise UserError("--user: case-study shows one user, as in --user=196; no other experiment does")
    options = _options(settings, experiment.name)
    experiment = with_changes(experiment, datasets, settings.pop("seeds", None), settings)
    if experiment.name == "efficiency":
        _efficiency(experiment, rounds, options)
    else:
        _report(experiment, options, groups=experiment.name == "groups", user="" if user is None else str(user))


def _report(experiment: Any, options: dict[str, Any], groups: bool = False, user: str = "") -> None:
    """Train what is missing, write the reports, print the summary and the page's name."""
    from recbole_sigma.experiment.report import check_report, summary
    from recbole_sigma.experiment.running import carry_out, write_reports

    planned = list(experiment.runs())
    check_report(options["out"])  # now, and not after hours of training
    if user:
        from recbole_sigma.experiment.case_study import check_user

        check_user(planned, user)
    runs = carry_out(planned, *(options[key] for key in ("checkpoint_dir", "jobs", "speed", "engine")))
    report = write_reports(runs, experiment.title, options["command"], options["out"], groups, user)
    print(summary(report))
    print(f"\n{options['out'].with_suffix('.html')}")
    if missing := [run for run in runs if run.problem]:
        raise UserError(
            f"{len(missing)} of {len(runs)} runs have no result, as the report says; the same command tries again"
        )


def _efficiency(experiment: Any, rounds: int, options: dict[str, Any]) -> None:
    from recbole_sigma.experiment.efficiency import efficiency
    from recbole_sigma.run_folder import write_whole

    text = "\n".join(measured.as_text() for measured in efficiency(experiment, rounds))
    out = options["out"].with_suffix(".md")

    def write(path: Path) -> None:
        path.write_text(f"# {experiment.title}\n\n{text}\nMade by\n\n    {options['command']}\n", encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, write)
    print(f"{text}\n{out}")


def _options(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """What says how and where; settings that arms share stay in `settings`."""
    from recbole_sigma.experiment.plan import IRRELEVANT

    jobs = _count(settings, "jobs", 1)
    folder = settings.get("checkpoint_dir", "saved")
    if not isinstance(folder, str) or not folder:
        raise UserError(f"checkpoint_dir must be a folder, got {folder!r}")
    out = settings.pop("out", str(Path(folder) / name))
    if not isinstance(out, str) or not out:
        raise UserError(f"--out must be a file, got {out!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    speed = {"threads": max(cores // jobs, 1), "show_progress": False}
    speed |= {key: value for key, value in settings.items() if key in IRRELEVANT and key != "checkpoint_dir"}
    engine = settings.pop("engine", "local")
    if engine not in ENGINES:
        raise UserError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return {
        "engine": engine,
        "jobs": jobs,
        "checkpoint_dir": Path(folder),
        "out": Path(out),
        "speed": speed,
        "command": command_line(),
    }


def _count(settings: dict[str, Any], name: str, default: int) -> int:
    value = settings.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise UserError(f"--{name} must be a whole number, at least 1, got {value!r}")
    return value


def _names(value: Any, name: str, example: str) -> list[str]:
    """`A,B` or `[A, B]`."""
    names = value if isinstance(value, list) else str(value or "").split(",")
    names = [each.strip() for each in names if isinstance(each, str) and each.strip()]
    if not names:
        raise UserError(f"--{name}: name at least one, {example}")
    return names
