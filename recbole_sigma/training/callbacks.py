"""Callbacks: the one seam after an epoch. The trainer calls each one when an epoch is complete."""

from collections.abc import Mapping
from typing import Protocol


class Callback(Protocol):
    """Is called after each epoch with its row of metrics.csv; may stop the run by raising."""

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        """`row` has `epoch` (from 0), `loss`, `train_seconds`, and after an evaluation the metrics."""
