"""FEARec (Du et al., SIGIR 2023, arXiv 2304.09184): RecBole's class, with a fast index of same targets."""

import io
import math
from contextlib import redirect_stdout
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.model.sequential_recommender.fearec import FEARec as RecBoleFEARec
from torch import Tensor

from recbole_sigma.errors import UserError

LARGEST_BATCH = 8192  # RecBole makes a mask of all pairs of twice the rows, in a Python loop


class FEARec(RecBoleFEARec):
    """RecBole's FEARec: the same function, loss and random draws, but for the two cases where RecBole's cannot go on.

    Its attention works on the spectrum of all MAX_ITEM_LIST_LENGTH slots: padding cannot be cut.
    """

    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "contrast": ("un", "su", "us", "us_x", "none"),
        "fredom_type": ("un", "su", "us", "us_x", "none"),
        "sim": ("dot", "cos"),
    }

    def __init__(self, config: Any, dataset: Any) -> None:
        _check(config)
        with redirect_stdout(io.StringIO()):  # RecBole prints its frequency bands
            super().__init__(config, dataset)

    def get_same_item_index(self, dataset: Any) -> dict[int, np.ndarray]:
        """Item -> the samples (n,) whose target it is, ascending, by one sort; RecBole searches once a sample.

        If these samples all have the same history, only one is listed: RecBole draws until it meets another history,
        unless there is one sample.
        """
        samples = dataset.inter_feat
        target = samples[self.ITEM_ID].numpy()
        order = np.argsort(target, kind="stable")
        items, first = np.unique(target[order], return_index=True)
        lengths = samples[self.ITEM_SEQ_LEN].numpy()

        def one_history(rows: np.ndarray) -> bool:
            if len(rows) == 1 or (lengths[rows] != lengths[rows[0]]).any():
                return False
            histories = samples[self.ITEM_SEQ][rows]
            return bool((histories == histories[0]).all())

        groups = zip(items.tolist(), np.split(order, first[1:]), strict=True)
        return {item: rows[:1] if one_history(rows) else rows for item, rows in groups}

    def info_nce(
        self, z_i: Tensor, z_j: Tensor, temp: float, batch_size: int, sim: str = "dot"
    ) -> tuple[Tensor, Tensor]:
        """RecBole's logits (2B, 2B - 1) and labels (2B,) of views (B, D), (B, D); a single row has no negatives."""
        if batch_size == 1:
            return torch.zeros(2, 1, device=z_i.device), torch.zeros(2, dtype=torch.long, device=z_i.device)
        return super().info_nce(z_i, z_j, temp, batch_size, sim)


def _check(config: Any) -> None:
    """Refuse what RecBole's class fails on, far inside."""
    length, n_layers, factor = config["MAX_ITEM_LIST_LENGTH"], config["n_layers"], config["topk_factor"]
    if length % 2 or length < 4:
        raise UserError(f"MAX_ITEM_LIST_LENGTH must be even and at least 4 for FEARec's spectrum, got {length}")
    if n_layers < 2:
        raise UserError(f"n_layers must be at least 2 for FEARec, whose frequency bands slide, got {n_layers}")
    if config["train_batch_size"] > LARGEST_BATCH:
        size = config["train_batch_size"]
        raise UserError(f"train_batch_size must be at most {LARGEST_BATCH} for FEARec's contrasts, got {size}")
    if int(factor * math.log(length)) > length:
        raise UserError(f"topk_factor * log(MAX_ITEM_LIST_LENGTH) delays must be at most {length}, got factor {factor}")
