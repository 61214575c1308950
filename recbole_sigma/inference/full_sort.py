"""RecBole's `recbole.utils.case_study` under its names and signatures, for the users of a test loader."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError


@torch.no_grad()
def full_sort_scores(
    uid_series: Sequence[int] | np.ndarray, model: Any, test_data: Any, device: torch.device | str | None = None
) -> Tensor:
    """Scores of all items for users by number (`dataset.token2id`): (n, V), -inf for the padding item 0.

    As in RecBole, seen items keep their scores. `model` and `test_data` are those of a run, as `load_run` gives them;
    `device` is by default the model's. Raises UserError for a user without a row in `test_data`.
    """
    dataset = test_data.dataset
    users = dataset.inter_feat[dataset.uid_field].numpy()
    order = np.argsort(users)
    wanted = np.atleast_1d(np.asarray(uid_series))
    position = np.searchsorted(users, wanted, sorter=order).clip(max=len(users) - 1)
    missing = wanted[users[order[position]] != wanted]
    if len(missing):
        raise UserError(f"uid_series: user {missing[0]} has no row in this data; users are numbers of dataset.token2id")
    device = torch.device(device) if device else next(iter(model.state_dict().values())).device
    scores: Tensor = model.eval().full_sort_predict(dataset[order[position]].to(device))
    scores = scores.view(len(wanted), dataset.item_num)
    scores[:, 0] = -torch.inf
    return scores


def full_sort_topk(
    uid_series: Sequence[int] | np.ndarray, model: Any, test_data: Any, k: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The k highest scores of each user and their items by number, (n, k) each; names: `dataset.id2token`."""
    values, items = torch.topk(full_sort_scores(uid_series, model, test_data, device), k)
    return values, items
