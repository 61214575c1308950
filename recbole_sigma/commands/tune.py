"""`recbole-sigma tune`: choose settings on validation, by Hyperopt or Ray Tune."""

from collections.abc import Sequence
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.config.values import read_config_files

_DETAILS = """
  --model=NAME, --dataset=NAME, --config_files=A,B, --SETTING=VALUE    as in train, for all trials
  --params_file=FILE       parameters and the values to try, a line each (hyper.test):
                               r choice [0, 2, 5, 10]
                               dropout_prob uniform 0.1,0.5
                               learning_rate loguniform -8,0         exponents of e
                               num_layers quniform 1,4,1             steps of 1
  --tool=hyperopt|ray      hyperopt: one trial after the other, here; ray: side by side (hyperopt)
  --max_evals=N            trials (all, if every parameter is a choice; else 20)
  --algo=exhaustive|random|bayes    (exhaustive, if every parameter is a choice; else bayes)
  --resume=TUNE_DIR        go on with a sweep that was ended; giving the same command does, too

with --tool=ray; RAY_ADDRESS joins a cluster, whose machines must share checkpoint_dir and the data:
  --jobs=N                 trials at a time (as many as there is room for)
  --cpus_per_trial=X       (1)
  --gpus_per_trial=X       parts are allowed, such as 0.25 (1 where there is a GPU)
  --asha=False             train every trial to its end, instead of stopping those that are behind
  --grace_period=N         epochs that every trial gets (5)
  --reduction_factor=X     one of X trials goes on beyond a rung; each rung is X times as far as the one before (3)

Validation chooses; test is evaluated once, for the winner, after all trials. Each trial is a run in the sweep's folder,
and is not trained again where a sweep goes on or gets more trials.

examples:
  recbole-sigma tune --model=SIGMA --dataset=ml-100k --params_file=hyper.test
  recbole-sigma tune --model=SIGMA --dataset=amazon-beauty --data_path=data --max_evals=30 --algo=bayes --epochs=50
  recbole-sigma tune --dataset=amazon-beauty --data_path=data --tool=ray --jobs=4 --gpus_per_trial=0.25
  RAY_ADDRESS=auto recbole-sigma tune --tool=ray --cpus_per_trial=2
  recbole-sigma tune --resume=saved/tune-SIGMA-ml-100k-ray-0123456789ab
"""


def main(argv: Sequence[str]) -> None:
    """Print the trials, the winner with its test metrics and, last, the winner's run directory."""
    parser = options.command_parser(
        "tune",
        "[--model=NAME] [--dataset=NAME] [--params_file=FILE] [--tool=hyperopt|ray] [--max_evals=N] "
        "[--SETTING=VALUE ...]",
        "Train a model with many settings; print the trials, and the winner with its test metrics.",
        _DETAILS,
    )
    _, settings = options.parse(parser, argv)
    max_evals = settings.pop("max_evals", None)
    from recbole_sigma.experiment import search
    from recbole_sigma.experiment.record import trials_table, winner_table

    if "resume" in settings:
        result = search.resume_tuning(options.name(settings, "resume", ""), settings, max_evals)
    else:
        result = _start(settings, max_evals)
    print(trials_table(result.trials, result.best, result.metric))
    print()
    print(winner_table(result.best, result.winner))
    print(result.winner.folder)


def _start(settings: dict[str, Any], max_evals: Any) -> Any:
    from recbole_sigma.experiment.search import RAY_OPTIONS, tune

    files = options.files(settings)
    in_files = {key: given.value for key, given in read_config_files(files).items() if key in ("model", "dataset")}
    settings = {**in_files, **settings}
    algo = options.name(settings, "algo", "") if "algo" in settings else None
    return tune(
        options.name(settings, "model", options.DEFAULT_MODEL),
        options.name(settings, "dataset", options.DEFAULT_DATASET),
        options.name(settings, "params_file", "hyper.test"),
        options.name(settings, "tool", "hyperopt"),
        max_evals,
        algo,
        files,
        options={name: settings.pop(name) for name in RAY_OPTIONS if name in settings},
        settings=settings,
    )
