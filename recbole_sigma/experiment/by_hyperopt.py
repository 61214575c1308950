"""Sweeps by Hyperopt, through RecBole's HyperTuning: one trial after the other, in this process."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hyperopt import fmin
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_sigma.experiment.sweep import Outcome, Sweep, train_trial


class SeededTuning(HyperTuning):
    """RecBole's HyperTuning, repeatable, and silent about test metrics, which its objective does not have.

    Its space is always parsed before: RecBole would run what a parameter file says. Its exhaustive search asks for a
    generator of NumPy that Hyperopt since 0.2.7 does not take, so that here `points` say what is tried.
    """

    def __init__(self, *args: Any, points: Sequence[Mapping[str, int]], seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._points, self._seed = [dict(each) for each in points], seed
        if points:
            self.max_evals = len(points)
            self.algo = _nothing_more

    def _print_result(self, result_dict: dict[str, Any]) -> None:
        """Nothing: the sweep tells."""

    def run(self) -> None:
        fmin(
            self.trial,
            self.space,
            algo=self.algo,
            max_evals=self.max_evals,
            points_to_evaluate=self._points or None,
            rstate=np.random.default_rng(self._seed),
            show_progressbar=False,
            verbose=False,
        )


def _nothing_more(*_: Any) -> list[Any]:
    """What Hyperopt asks for settings after the given ones."""
    return []


def search(sweep: Sweep, algo: str, max_evals: int, seed: int, ended: Callable[[Outcome], None]) -> None:
    """Try settings by `exhaustive`, `random` or `bayes`; `ended` is told of each trial."""

    def objective(samples: dict[str, Any], _: Any) -> dict[str, Any]:
        outcome = train_trial(sweep, samples)
        ended(outcome)
        score = sweep.score(outcome)
        return {
            "model": sweep.model,
            "best_valid_score": score,
            "valid_score_bigger": True,
            "best_valid_result": outcome.valid,
            "test_result": {},
        }

    points = sweep.space.places(max_evals, seed) if algo == "exhaustive" else []
    tuning = SeededTuning(
        objective, space=sweep.space.hyperopt(), algo=algo, max_evals=max_evals, points=points, seed=seed
    )
    with contextlib.redirect_stdout(io.StringIO()):  # RecBole prints each trial's settings
        tuning.run()
