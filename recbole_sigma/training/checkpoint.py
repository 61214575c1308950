"""All that decides the rest of a training, as plain values and tensors: taken after an epoch, put back to go on."""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import digest
from recbole_sigma.training.trainer import SequenceTrainer

logger = logging.getLogger(__name__)


def take(trainer: SequenceTrainer, loader: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The state after an epoch. For all processes to call, since each has generators; {} for all but the first.

    `facts` are what it must fit when it is put back: plain values by name, such as the data's checksum.
    """
    generators = trainer.group.gather(random_state())
    if not trainer.group.first:
        return {}
    best = trainer.best
    current = {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}
    weights = current if best.epoch == len(trainer.rows) - 1 else _best_so_far(trainer)
    return {
        "facts": dict(facts),
        "epochs": trainer.rows,
        "samples": trainer.samples,
        "model": current,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "best": {**asdict(best), "weights": weights},
        "loader": loader.state(),
        "random": generators,
    }


def _best_so_far(trainer: SequenceTrainer) -> dict[str, Tensor]:
    """The weights of an earlier epoch; none before the first evaluation."""
    return {} if trainer.best.epoch < 0 else trainer.folder.load_weights()


def put_back(state: Mapping[str, Any], trainer: SequenceTrainer, loader: Any, facts: Mapping[str, Any]) -> None:
    """Go on as the trainer that gave `state` would. Raises UserError, saying how, where it does not fit."""
    where = trainer.folder.path / "state.pt"
    _check_facts(where, state["facts"], facts)
    for weights in filter(None, (state["model"], state["best"]["weights"])):
        check_weights(where, weights, trainer.model.state_dict())
    if len(state["random"]) != trainer.group.size:
        raise UserError(f"{where}: of {len(state['random'])} processes, and here are {trainer.group.size}: set nproc")
    if trainer.epochs < len(state["epochs"]):
        raise UserError(f"epochs must be at least {len(state['epochs'])}, which this run has completed")

    trainer.rows = list(state["epochs"])
    trainer.samples = state["samples"]
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    for name in ("epoch", "score", "waited"):  # patience is a setting
        setattr(trainer.best, name, state["best"][name])
    loader.load_state(state["loader"])
    set_random_state(state["random"][trainer.group.rank])


class Progress:
    """A run's state on disk: saved after each epoch, restored to go on; and how long it has taken so far."""

    def __init__(self, trainer: SequenceTrainer, loader: Any, facts: Mapping[str, Any], started: float) -> None:
        self._trainer, self._loader, self._facts, self._started = trainer, loader, facts, started
        self._seconds_before = 0.0
        self._resumed: list[int] = []

    def times(self) -> dict[str, Any]:
        """For result.json: seconds in all, and the epochs after which the run was resumed."""
        seconds = self._seconds_before + time.time() - self._started
        return {"total_seconds": round(seconds, 2), "resumed_after_epochs": self._resumed}

    def save(self) -> None:
        """The state first: what else stands in the folder follows from it."""
        state = take(self._trainer, self._loader, self._facts)
        folder, rows = self._trainer.folder, self._trainer.rows
        if self._trainer.group.first:
            folder.save_state({**state, "times": self.times()})
            if self._trainer.best.epoch == len(rows) - 1:
                folder.save_weights(state["best"]["weights"])
            folder.write_epochs(rows)

    def restore(self) -> None:
        """Go on after the last complete epoch; from the start if there is none."""
        state = self._trainer.folder.load_state()
        if state is None:
            return
        put_back(state, self._trainer, self._loader, self._facts)
        self._seconds_before = state["times"]["total_seconds"]
        self._resumed = [*state["times"]["resumed_after_epochs"], len(self._trainer.rows)]
        logger.info("resumed after %d complete epochs", len(self._trainer.rows))
        if self._trainer.group.first:
            self._mend_folder(state["best"]["weights"])

    def _mend_folder(self, best: Mapping[str, Tensor]) -> None:
        """What the process was killed before writing, or somebody has damaged."""
        folder = self._trainer.folder
        try:
            is_whole = not best or digest(folder.load_weights()) == digest(dict(sorted(best.items())))
        except UserError:
            is_whole = False
        if not is_whole:
            folder.save_weights(best)
        folder.write_epochs(self._trainer.rows)


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Draw on as when `random_state` gave `state`. CUDA's are left alone where there are fewer GPUs than then."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and 0 < len(state["cuda"]) <= torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _check_facts(where: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other data, models or settings than those that the state is of."""
    differences = [f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if differences:
        raise UserError(f"{where}: does not fit: {_shortened(differences)}")


def check_weights(where: Any, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse the weights of another model: names and shapes must be the same."""
    differences = list(_different(saved, wanted))
    if differences:
        raise UserError(f"{where}: of another model: {_shortened(differences)}")


def _different(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted({*saved, *wanted}):
        if name not in saved:
            yield f"{name} is missing"
        elif name not in wanted:
            yield f"{name} is unknown"
        elif saved[name].shape != wanted[name].shape:
            yield f"{name} is {tuple(saved[name].shape)}, should be {tuple(wanted[name].shape)}"


def _shortened(differences: list[str]) -> str:
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more
