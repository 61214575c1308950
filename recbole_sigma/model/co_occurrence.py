"""Co-occurrence: a part of the probability goes to items that other users had shortly after, or before, these items.

A network with D numbers per item generalises, and cannot keep every pair of items that it has seen; a table of pairs
does. As language models are interpolated with the neighbours of a context (kNN-LM, arXiv 1911.00172).
"""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.model.fitted import strongest
from recbole_sigma.ops.traced import exporting

# Chosen on the validation users of amazon-beauty (results/accuracy-study.md)
NEIGHBOURS = 128  # items kept for each item
REACH = 20  # pairs further apart in a history do not count
GAP = 0.8  # a pair counts GAP^(items between the two),
BACKWARD = 0.5  # times this, if the neighbour came before the item,
POPULARITY = 0.3  # divided by (interactions(item) interactions(neighbour))^POPULARITY
AGE = 0.8  # an item of the history counts AGE^(newer items);
RECENT = 100  # with this many newer items, nothing

ROWS = 256  # scored together, in a third of the memory and two thirds of the time of a batch of evaluation


class CoOccurrence(nn.Module):
    """log((1 - share) softmax(scores) + share K / sum K), K_i = sum over the history's items j of AGE^age_j C_ji."""

    neighbours: Tensor  # (V, NEIGHBOURS) item ids; 0 where an item has fewer
    counts: Tensor  # (V, NEIGHBOURS), C, falling; 0 where an item has fewer

    def __init__(self, share: float, samples: Any, n_items: int) -> None:
        """`samples`: the training samples (data/prefixes.py, data/windows.py), or none for a model that is loaded."""
        super().__init__()
        self.share = share
        neighbours, counts = torch.zeros(n_items, NEIGHBOURS, dtype=torch.int32), torch.zeros(n_items, NEIGHBOURS)
        if samples is not None:
            strongest(pairs(samples, n_items), neighbours, counts)
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("counts", counts)

    def forward(self, scores: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items and histories, right-padded with 0: (n, V), (n, L), (n,) -> (n, V)"""
        if not exporting() and len(scores) > ROWS:
            parts = zip(*(each.split(ROWS) for each in (scores, history, lengths)), strict=True)
            return torch.cat([self(*part) for part in parts])
        width = history.shape[1] if exporting() else min(RECENT, history.shape[1])
        at = (lengths[:, None] - width).clamp(min=0) + torch.arange(width, device=history.device)
        history, age = history.gather(1, at), lengths[:, None] - 1 - at
        counts = self.counts[history] * torch.where(history > 0, AGE ** age.clamp(min=0), 0.0)[..., None]
        mass = counts.new_zeros(scores.shape)
        mass = mass.scatter_add(1, self.neighbours[history].flatten(1).long(), counts.flatten(1))
        own = torch.log_softmax(scores.float(), 1) + np.log(1 - self.share)
        theirs = torch.log(mass) - torch.log(mass.sum(1, keepdim=True).clamp(min=1e-30)) + np.log(self.share)
        return torch.logaddexp(own, theirs)  # of what nobody had near these items, `theirs` is -inf


def pairs(samples: Any, n_items: int) -> csr_array:
    """C (V, V): how often an item of a training history has another one near it, weighted as above."""
    if not hasattr(samples, "flat"):
        raise UserError("co_occurrence: needs the loaders of recbole-sigma; train with recbole_sigma.run")
    known, item = np.unique(samples.interactions()), samples.flat.columns[samples.flat.item].numpy()
    total = csr_array((n_items, n_items), dtype=np.float32)
    for gap in range(1, REACH + 1):
        at = known[known - gap >= samples.flat.starts(known)]  # what comes before a target is known, too
        earlier, later = item[at - gap], item[at]
        weight = np.full(len(at), GAP ** (gap - 1), dtype=np.float32)
        total = total + csr_array((weight, (earlier, later)), shape=total.shape)
        total = total + csr_array((BACKWARD * weight, (later, earlier)), shape=total.shape)
    scale = diags_array(np.bincount(item[known], minlength=n_items).clip(1) ** -POPULARITY)
    return csr_array(scale @ total @ scale)
