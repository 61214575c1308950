"""recbole-sigma tune [--model=NAME] [--dataset=NAME] [--params_file=FILE] [--engine=hyperopt|ray] [--SETTING=VALUE ...]

Train a model with many settings; print the trials, and the winner with its test metrics.

  --model=NAME, --dataset=NAME, --config_files=A,B, --SETTING=VALUE    as in train, for all trials
  --params_file=FILE       parameters and the values to try, one per line (hyper.test, here):
                               r choice [0, 2, 5, 10]
                               dropout_prob uniform 0.1,0.5
                               learning_rate loguniform -8,0         exponents of e
                               num_layers quniform 1,4,1             steps of 1
  --engine=hyperopt|ray      hyperopt: one trial after the other, in this process; ray: side by side (hyperopt)
  --max_evals=N            trials (all, if every parameter is a choice; else 20)
  --algo=exhaustive|random|bayes    (exhaustive, if every parameter is a choice; else bayes)
  --resume=TUNE_DIR        resume an interrupted sweep; giving the same command does, too

with --engine=ray; RAY_ADDRESS joins a cluster, whose machines must share checkpoint_dir and the data:
  --jobs=N                 trials at the same time (as many as there is room for)
  --cpus_per_trial=X       CPU cores of each trial (1)
  --gpus_per_trial=X       GPUs of each trial; fractions are allowed, such as 0.25 (1 where there is a GPU)
  --asha=False             train every trial to its end, instead of stopping those that are behind
  --grace_period=N         epochs that every trial gets (5)
  --reduction_factor=X     one in X trials continues beyond a rung; each rung is X times as far as the one before (3)

Validation chooses; test is evaluated once, for the winner, after all trials. Each trial is a run in the sweep's
directory, and is not trained again when a sweep is resumed or gets more trials.

examples:
  recbole-sigma tune --model=SIGMA --dataset=ml-100k --params_file=hyper.test
  recbole-sigma tune --model=SIGMA --dataset=amazon-beauty --data_path=data --max_evals=30 --algo=bayes --epochs=50
  recbole-sigma tune --dataset=amazon-beauty --data_path=data --engine=ray --jobs=4 --gpus_per_trial=0.25
  RAY_ADDRESS=auto recbole-sigma tune --engine=ray --cpus_per_trial=2
  recbole-sigma tune --resume=saved/tune-SIGMA-ml-100k-ray-0123456789ab
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_sigma.commands import options, terminal
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.space import OPTIONS, complete_options, read_space

if TYPE_CHECKING:
    from recbole_sigma.experiment.sweep import Sweep


def main(argv: Sequence[str]) -> None:
    """Print the trials, the winner with its test metrics and, last, the winner's run directory."""
    _, settings = options.parse(options.command_parser(__doc__), argv)
    if "resume" in settings:
        folder, max_evals = options.directory(settings, "resume", "tuning.json"), settings.pop("max_evals", None)
        from recbole_sigma.experiment.search import resume_tuning

        print(tables(resume_tuning(folder, settings, max_evals)))
        return
    files = options.files(settings)
    if "engine" in settings:
        settings["tool"] = settings.pop("engine")  # the name in RecBole and in tuning.json
        if settings["tool"] not in ("hyperopt", "ray"):
            raise UserError(f"--engine must be hyperopt or ray, got {settings['tool']!r}")
    params_file = options.name(settings, "params_file", "hyper.test")
    tune_options = complete_options({name: settings.pop(name) for name in OPTIONS if name in settings})
    model, dataset = options.model_and_dataset(settings, files)
    read_space(params_file)
    from recbole_sigma.experiment.search import tune  # takes seconds: a mistake above is reported before

    print(tables(tune(model, dataset, params_file, files, settings, tune_options)))


def tables(sweep: "Sweep") -> str:
    """The trials on validation, best first and marked; the winner on validation and test; its run directory last."""
    from recbole_sigma.evaluation.metrics import metric_title

    best, winner = sweep.best, sweep.winner
    assert winner is not None
    rows: list[list[str | int | float]] = []
    for trial in sorted(sweep.trials, key=sweep.score, reverse=True):
        cells = [trial.valid.get(metric, "-") for metric in best.valid]
        rows.append(["*" * (trial is best), _text(trial.values), *cells, trial.epochs, trial.status])
    headers = ["", "settings", *map(metric_title, best.valid), "epochs", "status"]
    tested = [(metric_title(name), winner.valid[name], value) for name, value in winner.test.items()]
    chosen = textwrap.fill(f"Chosen: {_text(best.values)}", terminal.WIDTH)
    return (
        f"Validation, * chosen by {metric_title(sweep.metric)}\n{terminal.table(headers, rows)}\n\n"
        f"{chosen}\n{terminal.table(['', 'valid', 'test'], tested)}\n{winner.folder}"
    )


def _text(values: Mapping[str, Any]) -> str:
    """`r=5, dropout_prob=0.25`; numbers in four digits."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())
