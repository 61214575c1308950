"""`recbole-sigma experiment`: an experiment of SIGMA's paper, or a YAML file of arms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.commands.compare import SHARED_DETAILS, run_and_report, run_options
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
    where = run_options(settings, experiment.name)
    experiment = with_changes(experiment, datasets, settings.pop("seeds", None), settings)
    if experiment.name == "efficiency":
        _efficiency(experiment, rounds, where)
    else:
        run_and_report(experiment, where, groups=experiment.name == "groups", user="" if user is None else str(user))


def _efficiency(experiment: Any, rounds: int, where: dict[str, Any]) -> None:
    from recbole_sigma.experiment.timing import efficiency
    from recbole_sigma.runs.files import write_file

    text = "\n".join(measured.as_text() for measured in efficiency(experiment, rounds))
    out = where["out"].with_suffix(".md")

    def write(path: Path) -> None:
        path.write_text(f"# {experiment.title}\n\n{text}\nMade by\n\n    {where['command']}\n", encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, write)
    print(f"{text}\n{out}")
