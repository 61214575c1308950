"""Callbacks: the one seam after an epoch. The trainer calls each of them when an epoch is complete."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter


class Callback(Protocol):
    """Is called after each epoch with its row of metrics.csv; may stop the run by raising an exception."""

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """`row` has `epoch` (from 0), `loss`, `train_seconds`, and after an evaluation its metrics and seconds.

        An epoch that became the last by resuming, and is evaluated only then, is given once more.
        """


class TensorBoard:
    """Writes each row as TensorBoard events into the run directory, and what parts of the model report.

    That is what a part's method `scalars` returns, such as the weights of SIGMA's branches, and for a part with
    `log_mean = True`, such as a gate, the mean of each of its outputs in evaluation.
    """

    def __init__(self, folder: Path, first_epoch: int, model: torch.nn.Module) -> None:
        # Hides the events of an epoch that an interrupted run had not completed.
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)
        self.close = self._writer.close
        self._scalars = {name: each.scalars for name, each in model.named_modules() if hasattr(each, "scalars")}
        self._means: dict[str, list[torch.Tensor]] = {}
        for name, module in model.named_modules():
            if getattr(module, "log_mean", False):
                module.register_forward_hook(partial(self._keep_means, model, name))

    def _keep_means(
        self, model: Any, name: str, module: torch.nn.Module, _: Any, outputs: Sequence[torch.Tensor]
    ) -> None:
        if not module.training and not getattr(model, "fits_head", False):  # on rows of a training batch
            self._means.setdefault(name, []).append(torch.stack([each.detach().mean() for each in outputs]))

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """One scalar for each column of the row, and for each number of the model."""
        values = dict(row)
        for name, scalars in self._scalars.items():
            values |= {f"{name}/{key}": value for key, value in scalars().items()}
        for name, means in self._means.items():
            values |= {f"{name}/mean {n}": value for n, value in enumerate(torch.stack(means).mean(0).tolist())}
        self._means.clear()
        for name, value in values.items():
            self._writer.add_scalar(name, value, int(row["epoch"]))
