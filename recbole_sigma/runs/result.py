"""result.json: the result of a run, and all that one must know to cite it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recbole_sigma.config.values import command_line
from recbole_sigma.environment import device_name, versions
from recbole_sigma.evaluation.protocol import protocol


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `valid` and `test` are by RecBole's names: `hit@10`, `ndcg@10`, `mrr@10`.

    They are empty for a split without samples, as validation with `eval_args: {split: {LS: test_only}}`. A result also
    answers what RecBole's `run_recbole` returns, as attributes and as keys: `result["test_result"]`.
    """

    folder: Path
    best_epoch: int
    valid: dict[str, float]
    test: dict[str, float]
    valid_metric: str = "ndcg@10"  # which chose the epoch
    valid_score_bigger: bool = True
    seen_masked: dict[str, dict[str, float]] = field(default_factory=dict)  # by split, with seen items masked

    @property
    def best_valid_score(self) -> float:
        """The metric that chose the epoch; NaN without a validation split."""
        return self.valid.get(self.valid_metric, math.nan)

    @property
    def best_valid_result(self) -> dict[str, float]:
        """The metrics on validation."""
        return self.valid

    @property
    def test_result(self) -> dict[str, float]:
        """The metrics on test."""
        return self.test

    def keys(self) -> tuple[str, ...]:
        """RecBole's keys."""
        return "best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)


def data_metadata(dataset: Any) -> dict[str, Any]:
    """Statistics and checksums of a data set, and how many items are ranked.

    `features` are the checksums of the .user and .item files that were read.
    """
    statistics = {**dataset.statistics(), "candidates": dataset.item_num - 1}
    return {**statistics, "sha256": dataset.checksum(), "features": dataset.feature_checksums()}


def result_content(
    config: Any, metadata: dict[str, Any], summary: dict[str, Any], metrics: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """The content of result.json; `metrics` of the best epoch are by split, without `test` for a trial of a sweep.

    Those of a split without samples are empty.
    """
    content = {
        "model": config.settings()["model"],
        "dataset": {"name": config.dataset, **metadata},
        "seed": config["seed"],
        "protocol": protocol(config, bool(metrics["valid"])),
        **metrics,
        **summary,
        "device": device_name(config["device"]),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": command_line(),
    }
    if empty := [split for split, values in metrics.items() if not values]:
        content["empty_splits"] = empty
    return content if "test" in metrics else {**content, "trial": True}
