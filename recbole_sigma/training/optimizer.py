"""How weights change: the optimiser, the schedule of its learning rate, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}
_FUSED = ("adam", "adamw")


def make_optimizer(config: Any, model: Any) -> Any:
    """The optimiser of the settings. AdamW decays matrices only: no bias, LayerNorm, skip or decay rate of Mamba.

    The decays of EMARec's averages are decayed as well, towards a half.
    """
    learner, decay = config["learner"], config["weight_decay"]
    options = {"lr": config["learning_rate"], "weight_decay": decay}
    as_in_recbole = not getattr(model, "accepts_any_length", False) or not getattr(model, "by_length", True)
    if learner in _FUSED and not config["enable_scaler"] and not as_in_recbole:
        options["fused"] = True  # one pass over a parameter, its gradient and its moments; rounds otherwise
    parameters: list[Any] = list(model.parameters()) or [torch.nn.Parameter(torch.zeros(1))]
    if learner == "adamw" and decay:
        named = [*model.named_parameters()]
        kept = [each for name, each in named if each.dim() < 2 or name.endswith("A_log")]
        decayed = [each for name, each in named if each.dim() >= 2 and not name.endswith("A_log")]
        parameters = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return getattr(torch.optim, _OPTIMIZERS[learner])(parameters, **options)


class Schedule:
    """The learning rate of each step: it follows from the step's number alone, so that it has no state to save."""

    def __init__(self, config: Any) -> None:
        self.rate, self.epochs = config["learning_rate"], config["epochs"]
        self.cosine, self.warmup = config["schedule"] == "cosine", config["warmup_epochs"]
        self.constant = not self.cosine and not self.warmup

    def rate_at(self, epoch: int, batch: int, batches: int) -> float:
        """The rate in step `batch`, from 0, of the `batches` of an epoch.

        It rises linearly over `warmup_epochs`; `cosine` then lets it fall to 0 at the end of the last epoch.
        """
        before, after = (epoch + min(number / batches, 1.0) for number in (batch, batch + 1))
        if after < self.warmup:
            return float(self.rate * after / self.warmup)
        if not self.cosine:
            return float(self.rate)
        passed = max(before - self.warmup, 0.0) / (self.epochs - self.warmup)
        return float(self.rate * (1 + math.cos(math.pi * passed)) / 2)


class WeightAverage:
    """An exponential moving average of a model's parameters, which is evaluated and saved in their place.

    The first steps are averaged evenly, until that moves slower than `1 - decay`: initial weights have no part in it.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._parameters = [each.data for each in model.parameters()]
        self._average = [each.clone() for each in self._parameters]
        self._decay, self._steps = decay, 0

    def update(self) -> None:
        """Include the weights after a step."""
        self._steps += 1
        torch._foreach_lerp_(self._average, self._parameters, max(1 - self._decay, 1 / self._steps))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights inside the block, and its own again afterwards."""
        own = [each.clone() for each in self._parameters]
        torch._foreach_copy_(self._parameters, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, own)

    def state(self) -> dict[str, Any]:
        """What `load_state` continues from, on the CPU."""
        return {"steps": self._steps, "average": [each.cpu() for each in self._average]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` has returned."""
        self._steps = state["steps"]
        averages: list[Tensor] = state["average"]
        for own, saved in zip(self._average, averages, strict=True):
            own.copy_(saved)
