"""recbole-sigma compare --model=A,B [--dataset=D,E] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]

Models side by side: trains what is missing, prints the table and, last, the report's file.

  --model=A,B              models, as the papers write them, or package.module:Class of yours
  --dataset=D,E            folders in data_path, or names of `recbole-sigma datasets` (ml-100k)
  --seeds=N                how many (1: 2020), or which ([1,2,3])
  --jobs=N                 runs at the same time (1); each is a process, with its share of the cores
  --engine=local|ray       ray: on the cluster that RAY_ADDRESS names, or a local one of --jobs workers
  --masked=true            print the ranks without seen items, too; the report has both in any case
  --out=FILE               report, FILE.md, .html, .csv and .tex (CHECKPOINT_DIR/NAME)
  --checkpoint_dir=FOLDER  directory of the runs (saved); runs found there are not trained again
  --SETTING=VALUE          any setting, for all arms

examples:
  recbole-sigma compare --model=SIGMA,Mamba4Rec,SASRec --seeds=3
  recbole-sigma compare --model=SIGMA,ECHO --dataset=amazon-beauty,yelp --data_path=data --seeds=5 --jobs=2
      stopped, or asked for more models or seeds, it trains what is missing
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_sigma.commands import options
from recbole_sigma.config.values import command_line
from recbole_sigma.errors import UserError

if TYPE_CHECKING:
    from recbole_sigma.experiment.spec import Experiment


def main(argv: Sequence[str]) -> None:
    """Train what is missing, print the table and, last, the report's file."""
    _, settings = options.parse(options.command_parser(__doc__), argv)
    models = options.names(settings, "model", example="SIGMA,Mamba4Rec")
    datasets = options.names(settings, "dataset", "ml-100k", example="amazon-beauty,yelp")
    how = take_options(settings)
    from recbole_sigma.experiment.spec import comparison, seeds_of

    seeds = seeds_of(settings.pop("seeds", 1))
    run_and_report(comparison(models, datasets, seeds, settings), **how)


def take_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the options that say how to run an experiment out of `settings`, as arguments of `run_and_report`."""
    return {
        "jobs": options.option(settings, "jobs", 1),
        "engine": options.option(settings, "engine", "local"),
        "masked": options.option(settings, "masked", False),
        "out": Path(options.name(settings, "out", "")) if "out" in settings else None,
    }


def run_and_report(
    experiment: "Experiment", jobs: int, engine: str, masked: bool, out: Path | None, groups: bool = False,
    user: str | None = None,
) -> None:  # fmt: skip
    """Train what is missing, write reports, print summary and page; also by user `groups`, and the `user`'s lists."""
    from recbole_sigma.evaluation.groups import BOUNDS
    from recbole_sigma.experiment.pool import run_all
    from recbole_sigma.report.render import check_report, report_of, summary, write_report

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = {"threads": max(cores // jobs, 1), "show_progress": False}
    runs = list(replace(experiment, settings=machine | dict(experiment.settings)).runs())
    config = runs[0][1]
    checkpoint_dir = Path(config["checkpoint_dir"])
    out = out or checkpoint_dir / experiment.name
    check_report(out)  # now, and not after hours of training
    if user is not None:
        from recbole_sigma.data.preparation import load
        from recbole_sigma.report.case_study import check_user

        configs = {each.dataset: each for _, each in runs}
        check_user({name: load(each).test.dataset for name, each in configs.items()}, user)
    launcher = None
    if engine == "ray":
        try:
            from recbole_sigma.experiment.ray import tasks
        except ImportError:
            raise UserError("--engine=ray: ray is not installed; pip install 'recbole-sigma[tune]'") from None
        launcher = tasks(jobs, config["threads"] or 1, config["use_gpu"])
        jobs = len(runs)  # the cluster runs as many as it has room for
    recorded = run_all(runs, checkpoint_dir, jobs, launcher)
    report = report_of(recorded, experiment.title, command_line(), 10, BOUNDS if groups else (), user, masked)
    for form in options.FORMS:
        write_report(report, options.beside(out, form), form)
    print(summary(report))
    print(f"\n{options.beside(out, 'html')}")
    if missing := [run for run in recorded if run.problem]:
        raise UserError(f"{len(missing)} of {len(runs)} runs have no result, see the report; the same command retries")
