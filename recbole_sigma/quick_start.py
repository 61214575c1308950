"""run(): one training run, from settings to a folder with its result."""

import importlib.metadata
import logging
import platform
import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed

from recbole_sigma.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import METRICS, metrics_of_ranks
from recbole_sigma.memory import keep_freed_memory
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.run_folder import RunFolder
from recbole_sigma.trainer import SequenceTrainer

PACKAGES = ("recbole-sigma", "recbole", "torch", "numpy", "pandas", "numba", "mamba-ssm", "causal-conv1d")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to. `valid` and `test` are by RecBole's names: `hit@10`, `ndcg@10`, `mrr@10`."""

    folder: Path
    best_epoch: int
    valid: dict[str, float]
    test: dict[str, float]


def run(
    model: str | type,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train one model on one data set, choose the epoch on validation, evaluate test once, write the run's folder.

    Args:
        model: a name that `registry.find_model` knows, or a class.
        dataset: a folder in `data_path`, or `ml-100k`.
        config_files: YAML files of settings.
        settings: settings by name; they win over the files.

    Raises:
        UserError: for settings, data or a training that cannot be right.
    """
    started = time.time()
    config = Config(model, dataset, config_files=config_files, settings=settings)
    _log_to_terminal(config["state"])
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    keep_freed_memory()
    _check_metrics(config)
    backend = _backend(config)
    init_seed(config["seed"], config["reproducibility"])
    data = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, data)
    _check_parts(data, train_data, valid_data, test_data)
    network = config.model_class(config, train_data.dataset).to(config["device"])

    folder = RunFolder(config["checkpoint_dir"], config.model, config.dataset)
    folder.write_yaml("config.yaml", config.settings())
    folder.write_json("items.json", [str(token) for token in data.field2id_token[data.iid_field]])
    logger.info("%s on %s: %s", config.model, config.dataset, data.statistics())
    logger.info("device %s, computed by %s, %d threads; folder %s", config["device"], backend, _threads(), folder.path)

    trainer = SequenceTrainer(config, network, folder)
    best = trainer.fit(train_data, valid_data)
    metrics = {}
    for part, loader in (("valid", valid_data), ("test", test_data)):  # of the best epoch; the test for the first time
        ranks = trainer.ranks(loader, part)
        folder.write_arrays(f"ranks-{part}.npz", ranks.arrays())
        metrics[part] = metrics_of_ranks(ranks.rank, trainer.topk)

    result = {
        "model": config.model,
        "dataset": {"name": config.dataset, **data.statistics(), "sha256": data.checksum()},
        "seed": config["seed"],
        "protocol": _protocol(config),
        "epochs": len(trainer.seconds["train"]),
        "best_epoch": best.epoch,
        **metrics,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        **_cost(trainer, config["device"]),
        "total_seconds": round(time.time() - started, 2),
        "device": _device_name(config["device"]),
        "threads": _threads(),
        "backend": backend,
        "versions": _versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    folder.write_json("result.json", result)
    return RunResult(folder.path, best.epoch, metrics["valid"], metrics["test"])


def _check_metrics(config: Config) -> None:
    """Refuse a metric that is not computed from ranks."""
    for name in config["metrics"]:
        if name.lower() not in METRICS:
            raise UserError(
                f"metrics must be among Hit, NDCG, MRR, got {name!r} (with one target a user, Recall is Hit)"
            )


def _backend(config: Config) -> str:
    """What does the scans of our models; RecBole's own models need torch only."""
    if not issubclass(config.model_class, SequenceModel):
        return "torch"
    try:
        return active_backend(config["device"])
    except CudaExtensionError as error:
        raise UserError(" ".join(str(error).split())) from None


def _protocol(config: Config) -> dict[str, Any]:
    return {
        "split": "leave-one-out per user: second to last item validation, last item test",
        "time_order": config["time_order"],
        "ranking": "all items, seen items not masked, ties at mean rank",
        "max_item_list_length": config["MAX_ITEM_LIST_LENGTH"],
        "selection": f"validation {config['valid_metric']}, patience {config['stopping_step']}",
    }


def _check_parts(data: Any, *loaders: Any) -> None:
    """Refuse data of which a part is empty."""
    for part, loader in zip(("training", "validation", "test"), loaders, strict=True):
        if not len(loader.dataset):
            raise UserError(f"{data.dataset_name}: nothing is left for {part}; some user must have 4 interactions")


def _cost(trainer: SequenceTrainer, device: torch.device) -> dict[str, float]:
    """Medians over epochs, and the peak memory of the process (CPU) or of the device (CUDA)."""
    per_epoch = float(np.median(trainer.seconds["train"]))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "seconds_per_epoch": round(per_epoch, 3),
        "samples_per_second": round(trainer.samples / per_epoch, 1),
        "eval_seconds": round(float(np.median(trainer.seconds["eval"])), 3),
        "peak_memory_mb": round(peak, 1),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _threads() -> int:
    return torch.get_num_threads()


def _versions() -> dict[str, str]:
    """Of Python and of what decides the numbers, as far as it is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _log_to_terminal(level: str) -> None:
    """One handler for our messages; RecBole's own chatter stays at warnings and above."""
    ours = logging.getLogger("recbole_sigma")
    ours.setLevel(level.upper())
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.propagate = False
