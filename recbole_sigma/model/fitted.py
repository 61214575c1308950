"""The base class of models that are computed from the training data at once, without a gradient."""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from scipy.sparse import csr_array
from torch import Tensor

from recbole_sigma.errors import UserError


class FittedModel(SequentialRecommender):
    """A subclass registers buffers, fills them in `fit(samples)`, and has `full_sort_predict`.

    The trainer calls `fit` in place of one epoch. `samples` are the training samples (data/prefixes.Prefixes).
    """

    accepts_any_length = True
    fits_at_once = True

    def fit(self, samples: Any) -> None:
        """Compute the model from training samples."""
        raise NotImplementedError

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of one item per row, (B,)."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Raises UserError: there is nothing to minimise."""
        raise UserError(f"{type(self).__name__} is fitted by recbole-sigma's trainer, not by gradient descent")


def interactions(samples: Any) -> tuple[Tensor, Tensor]:
    """User and item of each training interaction, (n,) each; those of validation and test are not among them."""
    at = torch.from_numpy(samples.interactions())
    flat = samples.flat
    return flat.columns[flat.user][at], flat.columns[flat.item][at]


def strongest(matrix: csr_array, columns: Tensor, values: Tensor) -> None:
    """Write the k largest values of each row into `values` (rows, k), falling, and their columns into `columns`.

    Where a row has fewer, both keep what they hold; of equal values the lower columns come first.
    """
    entries = matrix.tocoo()
    order = np.lexsort((entries.col, -entries.data, entries.row))
    row, col, value = entries.row[order], entries.col[order], entries.data[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # among those of its row
    kept = place < columns.shape[1]
    at = torch.from_numpy(row[kept]).long(), torch.from_numpy(place[kept])
    columns[at] = torch.from_numpy(col[kept]).int().to(columns.device)
    values[at] = torch.from_numpy(value[kept]).float().to(values.device)
