"""The training checkpoint: weights, optimiser, random generators; saved after each epoch, restored to resume."""

import contextlib
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs.files import digest
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.trainer import SequenceTrainer

logger = logging.getLogger(__name__)


class Checkpoint:
    """Saves a trainer's state after each epoch, and restores it. Every process of a run has one; the first writes."""

    def __init__(
        self, folder: RunFolder, trainer: SequenceTrainer, loader: Any, identity: Mapping[str, Any], started: float
    ) -> None:
        """A restored state must agree with `identity`; `started` is when this process began, by `time.time()`."""
        self._folder, self._trainer, self._loader = folder, trainer, loader
        self._identity, self._started = dict(identity), started
        self._seconds_before = 0.0
        self._resumed: list[int] = []

    def times(self) -> dict[str, Any]:
        """For result.json: seconds in all, and the numbers of epochs after which the run was resumed."""
        seconds = self._seconds_before + time.time() - self._started
        return {"total_seconds": round(seconds, 2), "resumed_after_epochs": self._resumed}

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """Save the state; then the weights of a new best epoch and metrics.csv, which follow from it."""
        state = self.capture()
        if self._trainer.group.first:
            self._folder.save_state({**state, "times": self.times()})
            if self._trainer.best.epoch == row["epoch"]:
                self._folder.save_weights(self._trainer.best_weights)
            self._folder.write_epochs(self._trainer.rows)

    def capture(self) -> dict[str, Any]:
        """The state after an epoch, as plain values and tensors. All processes call this: each has generators."""
        trainer = self._trainer
        return {
            "facts": self._identity,
            "epochs": trainer.rows,
            "samples": trainer.samples,
            "model": {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()},
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "schedule_epochs": trainer.schedule.epochs,
            "average": trainer.average.state() if trainer.average else None,
            "best": {**asdict(trainer.best), "weights": trainer.best_weights},
            "loader": self._loader.state(),
            "random": trainer.group.gather(random_state()),
        }

    def restore(self) -> None:
        """Continue after the last complete epoch, if any. Raises UserError for the state of another run."""
        state = self._folder.load_state()
        if state is None:
            return
        trainer, file = self._trainer, self._folder.path / "state.pt"
        self._check(state, str(file))
        try:
            trainer.model.load_state_dict(state["best"]["weights"] or state["model"])
            trainer.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"{file}: the weights of another model: {one_line(error)}") from None
        trainer.rows, trainer.samples = list(state["epochs"]), state["samples"]
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.schedule.epochs = state["schedule_epochs"]
        if trainer.average:
            trainer.average.load_state(state["average"])
        trainer.best_weights = state["best"]["weights"]
        for name in ("epoch", "score", "waited"):  # patience is a setting
            setattr(trainer.best, name, state["best"][name])
        self._loader.load_state(state["loader"])
        set_random_state(state["random"][trainer.group.rank])
        self._seconds_before = state["times"]["total_seconds"]
        self._resumed = [*state["times"]["resumed_after_epochs"], len(trainer.rows)]
        logger.info("resumed after %d complete epochs", len(trainer.rows))
        if trainer.group.first:
            self._repair(trainer.best_weights)

    def _check(self, state: Mapping[str, Any], file: str) -> None:
        """Refuse the state of other data or settings, of more processes, or of more epochs than are wanted."""
        before, now = state["facts"], self._identity
        gone = [name for name in before if name.endswith((".user", ".item")) and name not in now]
        changed = [name for name in (*now, *gone) if before.get(name) != now.get(name)]
        if differences := [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed]:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(f"{file}: is of another run: {'; '.join(differences[:3])}{more}")
        nproc, size = len(state["random"]), self._trainer.group.size
        if nproc != size:
            raise UserError(f"{file} was written by {nproc} processes, this run has {size}; set nproc={nproc}")
        if self._trainer.epochs < len(state["epochs"]):
            raise UserError(f"epochs must be at least {len(state['epochs'])}, which this run has completed")
        if self._trainer.schedule.cosine and self._trainer.epochs > state["schedule_epochs"]:
            last = state["schedule_epochs"]
            raise UserError(f"epochs must be at most {last}, over which the learning rate falls to 0 (schedule)")

    def _repair(self, best: Mapping[str, Tensor]) -> None:
        """Rewrite files that are missing or damaged after a kill."""
        self._folder.write_epochs(self._trainer.rows)
        with contextlib.suppress(UserError):
            if not best or digest(self._folder.load_weights()) == digest(dict(sorted(best.items()))):
                return
        self._folder.save_weights(best)


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
    """Continue the draws of `random_state`. CUDA's generators are left alone where there are fewer GPUs than then."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and 0 < len(state["cuda"]) <= torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
