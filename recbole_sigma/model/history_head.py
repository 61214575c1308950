"""The history head: two trained numbers that say how much less likely an item of the history is to come next."""

from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import Tensor, nn

SCALE = 10.0  # Adam moves a number by about the learning rate per step; scores must move by units
ROWS = 128  # of a batch, on which the head is fitted


class HistoryHead(nn.Module):
    """scores + w_seen [item in history] + w_last [item is the last one]; both weights start at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))  # w_seen and w_last, divided by SCALE

    def forward(self, scores: Tensor, history: Tensor, last: Tensor) -> Tensor:
        """(n, V), item ids (n, L) with 0 as padding, (n,) -> (n, V)"""
        seen = torch.zeros_like(scores).scatter_(1, history, 1.0)
        seen[:, 0] = 0
        w_seen, w_last = (SCALE * self.weights).to(scores.dtype)
        return (scores + w_seen * seen).scatter_add(1, last[:, None], w_last.expand(last.shape[0], 1))


def with_history_head(model_class: type[Any]) -> type[Any]:
    """The class with a history head on its scores (setting `head: history`).

    The model itself is trained as without the head, to the same weights: the head is fitted beside it by a second
    cross-entropy on detached scores of a part of each batch.
    """

    class WithHistoryHead(model_class):
        adds_history_head = True

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.history_head = HistoryHead()

        def calculate_loss(self, interaction: Interaction) -> Any:
            loss = super().calculate_loss(interaction)
            rows, target = _rows_of(interaction, self)
            was_training = self.training
            self.eval()
            with torch.no_grad():
                scores = super().full_sort_predict(rows).view(len(target), -1)
            self.train(was_training)
            fit = F.cross_entropy(self._corrected(scores, rows).float(), target)
            first, *others = loss if isinstance(loss, tuple) else (loss,)
            first = first + (fit - fit.detach())  # the gradient, but not the value: the loss stays the model's
            return (first, *others) if others else first

        def full_sort_predict(self, interaction: Interaction) -> Tensor:
            scores = super().full_sort_predict(interaction)
            return self._corrected(scores.view(interaction[self.ITEM_SEQ].shape[0], -1), interaction)

        def predict(self, interaction: Interaction) -> Tensor:
            return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

        def _corrected(self, scores: Tensor, rows: Interaction) -> Tensor:
            history, lengths = rows[self.ITEM_SEQ], rows[self.ITEM_SEQ_LEN]
            return self.history_head(scores, history, history.gather(1, lengths[:, None] - 1)[:, 0])

    WithHistoryHead.__name__, WithHistoryHead.__qualname__ = model_class.__name__, model_class.__qualname__
    return WithHistoryHead


def _rows_of(interaction: Interaction, model: Any) -> tuple[Interaction, Tensor]:
    """At most ROWS samples of a training batch as padded rows, and their targets (n,)."""
    lengths, targets = interaction[model.ITEM_SEQ_LEN], interaction[model.POS_ITEM_ID]
    if interaction[model.ITEM_SEQ].dim() > 1:
        rows = interaction[: min(ROWS, len(targets))]
        return rows, rows[model.POS_ITEM_ID]
    # flat histories (train_mode: sequence), of which each position with a target is a sample
    positions = targets.nonzero()[:, 0]
    positions = positions[:: -(-len(positions) // ROWS)]
    starts = torch.repeat_interleave(F.pad(lengths.cumsum(0), (1, 0))[:-1], lengths)[positions]
    starts = torch.maximum(starts, positions + 1 - model.max_seq_length)
    length = positions + 1 - starts
    step = torch.arange(int(length.max()), device=length.device)
    at = (starts[:, None] + step).clamp(max=len(targets) - 1)
    history = interaction[model.ITEM_SEQ][at].masked_fill(step >= length[:, None], 0)
    return Interaction({model.ITEM_SEQ: history, model.ITEM_SEQ_LEN: length}), targets[positions]
