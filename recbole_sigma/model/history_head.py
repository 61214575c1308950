"""The history head: two trained numbers that say how much less likely an item of the history is to come next."""

from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import Tensor, nn

SCALE = 10.0  # Adam moves a number by about the learning rate per step; scores must move by units
ROWS = 32  # of a batch, on which the head is fitted


class HistoryHead(nn.Module):
    """scores + w_seen [item in history] + w_last [item is the last one]; both weights start at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))  # w_seen and w_last, divided by SCALE

    def forward(self, scores: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """(n, V), item ids (n, L), right-padded with 0, (n,) -> (n, V). `fit` has the gradient of the weights."""
        added = self._added(history, _last(history, lengths)).to(scores.dtype)
        return scores.scatter(1, history, scores.gather(1, history) + added)

    def fit(self, scores: Tensor, history: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy, (), of the corrected scores, with a gradient of the weights only: no pass back over V.

        Arguments as in `forward`, and target (n,).
        """
        last = _last(history, lengths)
        own, of_target = scores.gather(1, history), scores.gather(1, target[:, None])[:, 0]
        unseen = scores.scatter(1, history, -torch.inf).logsumexp(1)
        history, order = history.sort(1)  # an item that is in the history several times counts once
        again = F.pad(history.diff(dim=1) == 0, (1, 0))
        added = self._added(history, last)
        seen = (own.gather(1, order) + added).masked_fill(again, -torch.inf).logsumexp(1)
        corrected = of_target + (added * ((history == target[:, None]) & ~again)).sum(1)
        return (torch.logaddexp(unseen, seen) - corrected).mean()

    def _added(self, history: Tensor, last: Tensor) -> Tensor:
        """What each item of a history adds to its score: (n, L), (n,) -> (n, L), 0 for the padding item"""
        w_seen, w_last = SCALE * self.weights
        return (w_seen + w_last * (history == last[:, None])) * (history != 0)


def _last(history: Tensor, lengths: Tensor) -> Tensor:
    """The newest item: (n, L), (n,) -> (n,)"""
    return history.gather(1, lengths[:, None] - 1)[:, 0]


def samples_of(interaction: Interaction, model: Any) -> tuple[Interaction, Tensor]:
    """At most ROWS samples of a training batch as padded rows, and their targets (n,)."""
    lengths, targets = interaction[model.ITEM_SEQ_LEN], interaction[model.POS_ITEM_ID]
    if interaction[model.ITEM_SEQ].dim() > 1:
        rows = interaction[: min(ROWS, len(targets))]
        return rows, rows[model.POS_ITEM_ID]
    # flat histories (train_mode: sequence), of which each position with a target is a sample
    positions = targets.nonzero()[:, 0]
    starts = torch.repeat_interleave(F.pad(lengths.cumsum(0), (1, 0))[:-1], lengths)[positions]
    starts = torch.maximum(starts, positions + 1 - model.max_seq_length)
    length = positions + 1 - starts
    n_rows = min(max(int(len(targets) / length.double().mean()), 1), ROWS)  # of no more items than the batch has
    every = slice(None, None, -(-len(positions) // n_rows))
    positions, starts, length = positions[every], starts[every], length[every]
    step = torch.arange(int(length.max()), device=length.device)
    at = (starts[:, None] + step).clamp(max=len(targets) - 1)
    history = interaction[model.ITEM_SEQ][at].masked_fill(step >= length[:, None], 0)
    return Interaction({model.ITEM_SEQ: history, model.ITEM_SEQ_LEN: length}), targets[positions]
