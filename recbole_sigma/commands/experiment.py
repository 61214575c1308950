"""`recbole-sigma experiment`: an experiment of SIGMA's paper, or a YAML file of arms."""

from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.commands.compare import SHARED_DETAILS, run_and_report, take_options
from recbole_sigma.config.values import command_line
from recbole_sigma.errors import UserError

_DETAILS = f"""
  NAME                     one of those above, or a YAML file of arms as in properties/experiment/
  --dataset=D              data sets, with commas (as the experiment says)
  --seeds=N                how many, or which (as the experiment says)
{SHARED_DETAILS.lstrip(chr(10))}  --rounds=N               efficiency: steps of each arm that are timed (20)
  --user=U                 case-study: the user, as in the data

examples:
  recbole-sigma experiment ablation --dataset=amazon-beauty --data_path=data --seeds=3
  recbole-sigma experiment flip-range --jobs=2
  recbole-sigma experiment efficiency --dataset=amazon-beauty --data_path=data --threads=2
  recbole-sigma experiment case-study --user=196
  recbole-sigma experiment mine.yaml
"""


def main(argv: Sequence[str]) -> None:
    """Run an experiment and write its report."""
    parser = options.command_parser(
        "experiment",
        "NAME [--dataset=D] [--seeds=N] [--jobs=N] [--SETTING=VALUE ...]",
        "Runs an experiment: ablation, case-study, depth, efficiency, flip-range, groups, mixing.",
        _DETAILS,
    )
    parser.add_argument("name", metavar="NAME", help="an experiment, or a YAML file of arms")
    args, settings = options.parse(parser, argv)
    datasets = options.names(settings, "dataset", example="amazon-beauty") if "dataset" in settings else []
    from recbole_sigma.experiment.spec import read_experiment, with_changes

    experiment = read_experiment(args.name)
    rounds = options.count(settings, "rounds", 20)
    user = settings.pop("user", None)
    if (experiment.name == "case-study") != (user is not None):
        raise UserError("--user: case-study shows one user, as in --user=196; no other experiment does")
    how = take_options(settings)
    experiment = with_changes(experiment, datasets, settings.pop("seeds", None), settings)
    if experiment.name != "efficiency":
        groups = experiment.name == "groups"
        run_and_report(experiment, **how, groups=groups, user="" if user is None else str(user))
        return
    from recbole_sigma.experiment.timing import measure
    from recbole_sigma.runs.files import write_text

    out = how["out"] or Path(str(experiment.settings.get("checkpoint_dir", "saved")), experiment.name)
    out = out.with_suffix(".md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out.parent}: cannot be written: {error.strerror}") from None
    text = measure(experiment, rounds)
    write_text(out, f"# {experiment.title}\n\n{text}\nMade by\n\n    {command_line()}\n")
    print(f"{text}\n{out}")
