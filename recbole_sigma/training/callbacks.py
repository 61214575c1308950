"""Callbacks: the one seam after an epoch. The trainer calls each of them when an epoch is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter


class Callback(Protocol):
    """Is called after each epoch with its row of metrics.csv; may stop the run by raising an exception."""

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """`row` has `epoch` (from 0), `loss`, `train_seconds`, and after an evaluation its metrics and seconds."""


class TensorBoard:
    """Writes each row as TensorBoard events into the run directory."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        # Hides the events of an epoch that an interrupted run had not completed.
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)
        self.close = self._writer.close

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """One scalar for each column of the row."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["epoch"]))
