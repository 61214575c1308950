"""result.json: the result of a run, and all that one must know to cite it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_sigma.config.values import command_line
from recbole_sigma.environment import device_name, versions
from recbole_sigma.evaluation.protocol import protocol


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `valid` and `test` are by RecBole's names: `hit@10`, `ndcg@10`, `mrr@10`.

    They are empty for a split without samples, as validation with `eval_args: {split: {LS: test_only}}`.
    """

    folder: Path
    best_epoch: int
    valid: dict[str, float]
    test: dict[str, float]


def data_metadata(dataset: Any) -> dict[str, Any]:
    """Statistics and checksum of a data set."""
    return {**dataset.statistics(), "sha256": dataset.checksum()}


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
