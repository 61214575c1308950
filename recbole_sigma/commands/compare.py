"""`recbole-sigma compare`: models side by side, and what `experiment` shares with it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.config.values import command_line
from recbole_sigma.errors import UserError

ENGINES = ("local", "ray")
SHARED_DETAILS = """
  --jobs=N                 runs at the same time (1); each is a process, with its share of the cores
  --engine=local|ray       ray: on the cluster that RAY_ADDRESS names, or a local one of --jobs workers
  --out=FILE               report, FILE.md, .html, .csv and .tex (CHECKPOINT_DIR/NAME)
  --checkpoint_dir=FOLDER  where runs are kept (saved); one that is there already is not trained again
  --SETTING=VALUE          any setting, for all arms
"""
_DETAILS = f"""
  --models=A,B             models, as the papers write them
  --datasets=D,E           folders in data_path, or ml-100k (ml-100k)
  --seeds=N                how many (1: 2020), or which ([1,2,3])
{SHARED_DETAILS.lstrip(chr(10))}
examples:
  recbole-sigma compare --models=SIGMA,Mamba4Rec,SASRec --seeds=3
  recbole-sigma compare --models=SIGMA,ECHO --datasets=amazon-beauty,yelp --data_path=data --seeds=5 --jobs=2
      stopped, or asked for more models or seeds, it trains what is missing
"""


def main(argv: Sequence[str]) -> None:
    """Train what is missing, print the table and, last, the report's file."""
    parser = options.command_parser(
        "compare",
        "--models=A,B [--datasets=D,E] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]",
        "Models side by side: trains what is missing, prints the table and, last, the report's file.",
        _DETAILS,
    )
    _, settings = options.parse(parser, argv)
    models = options.names(settings, "models", example="SIGMA,Mamba4Rec")
    datasets = options.names(settings, "datasets", "ml-100k", example="amazon-beauty,yelp")
    from recbole_sigma.experiment.spec import comparison, seeds_of

    where = run_options(settings, "compare")
    seeds = seeds_of(settings.pop("seeds", 1))
    run_and_report(comparison(models, datasets, seeds, settings), where)


def run_and_report(experiment: Any, where: dict[str, Any], groups: bool = False, user: str = "") -> None:
    """Train what is missing, write the reports, print the summary and the page's name."""
    from recbole_sigma.evaluation.groups import BOUNDS
    from recbole_sigma.experiment.pool import run_all
    from recbole_sigma.report.render import check_report, report_of, summary, write_report

    planned = list(experiment.runs())
    check_report(where["out"])  # now, and not after hours of training
    if user:
        from recbole_sigma.report.case_study import check_user

        check_user(planned, user)
    launcher = None
    if where["engine"] == "ray":
        from recbole_sigma.experiment.ray import tasks

        launcher = tasks(where["jobs"], where["machine"])
    runs = run_all(planned, where["checkpoint_dir"], where["jobs"], where["machine"], launcher)
    bounds = BOUNDS if groups else ()
    report = report_of(runs, experiment.title, where["command"], bounds=bounds, user=user or None)
    for form in ("md", "html", "csv", "tex"):
        write_report(report, where["out"].with_suffix(f".{form}"), form)
    print(summary(report))
    print(f"\n{where['out'].with_suffix('.html')}")
    if missing := [run for run in runs if run.problem]:
        raise UserError(
            f"{len(missing)} of {len(runs)} runs have no result, as the report says; the same command tries again"
        )


def run_options(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """What says how and where; settings that arms share stay in `settings`."""
    from recbole_sigma.experiment.store import role

    jobs = options.count(settings, "jobs", 1)
    folder = settings.get("checkpoint_dir", "saved")
    if not isinstance(folder, str) or not folder:
        raise UserError(f"checkpoint_dir must be a folder, got {folder!r}")
    out = options.name(settings, "out", str(Path(folder) / name))
    engine = options.name(settings, "engine", ENGINES[0])
    if engine not in ENGINES:
        raise UserError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = {"threads": max(cores // jobs, 1), "show_progress": False}
    machine |= {key: value for key, value in settings.items() if role(key) == "machine"}
    return {
        "engine": engine,
        "jobs": jobs,
        "checkpoint_dir": Path(folder),
        "out": Path(out),
        "machine": machine,
        "command": command_line(),
    }
