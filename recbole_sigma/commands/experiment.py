"""recbole-sigma experiment NAME [--dataset=D] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]

Runs an experiment: ablation, batch-size, case-study, depth, efficiency, equal-budget, flip-range, groups, mixing,
recurrence.

  NAME                     one of those above, or a YAML file of arms as in properties/experiment/
  --dataset=D              data sets, separated by commas (the experiment's, else ml-100k)
  --seeds=N                how many, or which, as in [1,2] (the experiment's, else 1: 2020)
  --jobs=N                 runs at the same time (1); each is a process, with its share of the cores
  --engine=local|ray       ray: on the cluster that RAY_ADDRESS names, or a local one of --jobs workers
  --out=FILE               report, FILE.md, .html, .csv and .tex (CHECKPOINT_DIR/NAME)
  --checkpoint_dir=FOLDER  directory of the runs (saved); runs found there are not trained again
  --SETTING=VALUE          any setting, for all arms that do not have it themselves
  --rounds=N               efficiency, batch-size, or a file that measures cost: steps of each arm (20)
  --model=CLASS            confirms a package.module:Class of the file's arms, which importing executes
  --user=U                 case-study, or a file that measures lists: the user, as in the data

examples:
  recbole-sigma experiment ablation --dataset=amazon-beauty --data_path=data --seeds=3
  recbole-sigma experiment flip-range --jobs=2
  recbole-sigma experiment efficiency --dataset=amazon-beauty --data_path=data --threads=2
  recbole-sigma experiment case-study --user=196
  recbole-sigma experiment mine.yaml
"""

from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.commands.compare import run_and_report, take_options
from recbole_sigma.config.values import command_line
from recbole_sigma.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Run an experiment and write its report."""
    parser = options.command_parser(__doc__)
    parser.add_argument("name", metavar="NAME", help="an experiment, or a YAML file of arms")
    args, settings = options.parse(parser, argv)
    datasets = options.names(settings, "dataset", example="amazon-beauty") if "dataset" in settings else []
    timed = "rounds" in settings
    unused = [name for name in ("jobs", "engine", "masked", "seeds") if name in settings]
    rounds, how = options.option(settings, "rounds", 20), take_options(settings)
    user = str(settings.pop("user")) if "user" in settings else None
    from recbole_sigma.experiment.spec import read_experiment, seeds_of

    seeds = seeds_of(settings.pop("seeds")) if "seeds" in settings else []
    confirmed = options.names(settings, "model", example="package.module:Class") if "model" in settings else []
    experiment = read_experiment(args.name, datasets, seeds, settings, confirmed)
    if timed and experiment.measures != "cost":
        raise UserError(f"--rounds: {experiment.name} times no steps, as efficiency does; leave it out")
    if experiment.measures == "cost" and unused:
        raise UserError(f"--{unused[0]}: {experiment.name} trains nothing, it times steps in turn; leave it out")
    if experiment.measures != "lists" and user is not None:
        raise UserError(f"--user: {experiment.name} shows no user's lists, as case-study does; leave it out")
    if experiment.measures == "lists" and user is None:
        raise UserError(f"--user: {experiment.name} shows the lists of one user; say of which, as in --user=196")
    if experiment.measures != "cost":
        run_and_report(experiment, **how, groups=experiment.measures == "groups", user=user)
        return
    from recbole_sigma.experiment.timing import measure
    from recbole_sigma.report.render import check_report
    from recbole_sigma.runs.files import write_text

    out = how["out"] or Path(str(experiment.settings.get("checkpoint_dir", "saved")), experiment.name)
    check_report(out, "csv")  # Markdown needs no package, either
    text = measure(experiment, rounds)
    write_text(options.beside(out, "md"), f"# {experiment.title}\n\n{text}\nMade by\n\n    {command_line()}\n")
    print(f"{text}\n{options.beside(out, 'md')}")
