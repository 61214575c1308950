"""result.json: what a run came to, and all that one must know to cite it."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_sigma.config.values import command_line
from recbole_sigma.environment import device_name, versions
from recbole_sigma.training.trainer import SequenceTrainer


@dataclass(frozen=True)
class RunResult:
    """What a run came to. `valid` and `test` are by RecBole's names: `hit@10`, `ndcg@10`, `mrr@10`."""

    folder: Path
    best_epoch: int
    valid: dict[str, float]
    test: dict[str, float]


def result_of(
    config: Any, data: dict[str, Any], trainer: SequenceTrainer, metrics: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """The content of result.json, but for what the caller knows alone.

    `data` is `data_facts`'; `metrics` those of the best epoch on `valid` and `test`.
    """
    return {
        "model": config.model,
        "dataset": {"name": config.dataset, **data},
        "seed": config["seed"],
        "protocol": _protocol(config),
        "epochs": len(trainer.rows),
        "best_epoch": trainer.best.epoch,
        **metrics,
        "n_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        **_cost(trainer),
        "device": device_name(config["device"]),
        "processes": trainer.group.size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": command_line(),
    }


def data_facts(data: Any) -> dict[str, Any]:
    """Statistics and checksum of a data set."""
    return {**data.statistics(), "sha256": data.checksum()}


def _protocol(config: Any) -> dict[str, Any]:
    return {
        "split": "leave-one-out per user: second to last item validation, last item test",
        "time_order": config["time_order"],
        "ranking": "all items, seen items not masked, ties at mean rank",
        "max_item_list_length": config["MAX_ITEM_LIST_LENGTH"],
        "selection": f"validation {config['valid_metric']}, patience {config['stopping_step']}",
    }


def _cost(trainer: SequenceTrainer) -> dict[str, float]:
    """Medians over epochs, and the peak memory of this process (CPU) or of its device (CUDA)."""
    per_epoch = float(np.median([row["train_seconds"] for row in trainer.rows]))
    per_evaluation = float(np.median([row["eval_seconds"] for row in trainer.rows if "eval_seconds" in row]))
    if trainer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(trainer.device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "seconds_per_epoch": round(per_epoch, 3),
        "samples_per_second": round(trainer.samples / per_epoch, 1),
        "eval_seconds": round(per_evaluation, 3),
        "peak_memory_mb": round(peak, 1),
    }
