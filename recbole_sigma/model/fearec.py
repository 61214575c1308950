"""FEARec (Du et al., SIGIR 2023, arXiv 2304.09184): RecBole's class, with fewer operations for the same numbers."""

import io
import math
from contextlib import redirect_stdout
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.sequential_recommender.fearec import FEARec as RecBoleFEARec
from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.hybrid_attention import band_pass, hybrid_attention

LARGEST_BATCH = 8192  # RecBole builds a mask of all pairs of 2B rows, in a Python loop


class FEARec(RecBoleFEARec):
    """RecBole's FEARec, except where that fails: targets whose samples all have one history, and batches of one row.

    The attention works on the spectrum of all MAX_ITEM_LIST_LENGTH slots: padding cannot be cut off.
    """

    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "contrast": ("un", "su", "us", "us_x", "none"),
        "fredom_type": ("un", "su", "us", "us_x", "none"),
        "sim": ("dot", "cos"),
    }

    def __init__(self, config: Any, dataset: Any) -> None:
        # RecBole's class fails on these values with errors that do not name the setting
        length, n_layers, factor = config["MAX_ITEM_LIST_LENGTH"], config["n_layers"], config["topk_factor"]
        size = config["train_batch_size"]
        if length % 2 or length < 4:
            raise UserError(f"MAX_ITEM_LIST_LENGTH must be even and at least 4 for FEARec's spectrum, got {length}")
        if n_layers < 2:
            raise UserError(f"n_layers must be at least 2 for FEARec's sliding frequency bands, got {n_layers}")
        if size > LARGEST_BATCH:
            raise UserError(f"train_batch_size must be at most {LARGEST_BATCH} for FEARec's contrasts, got {size}")
        if int(factor * math.log(length)) > length:
            raise UserError(
                f"topk_factor * log(MAX_ITEM_LIST_LENGTH) must be at most {length} for FEARec, got topk_factor={factor}"
            )
        if config["enable_amp"] and config["device"].type == "cuda":
            raise UserError("enable_amp must be False for FEARec on a GPU: its Fourier transforms need float32")
        with redirect_stdout(io.StringIO()):  # RecBole prints its frequency bands
            super().__init__(config, dataset)
        self.fourier: bool = config["fourier"] or not (config["dual_domain"] and config["std"])
        if self.fourier:
            return
        for number, block in enumerate(self.item_encoder.layer):
            band = band_pass(block.hybrid_attention.q_index, length)
            self.register_buffer(f"band_{number}", band, persistent=False)
            if config["hidden_act"] == "gelu":  # RecBole's is several operations
                block.feed_forward.intermediate_act_fn = F.gelu
        for module in [*self.modules()]:
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, Dropout(child.p))

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D); the last block works at their last items alone."""
        if self.fourier:
            return super().forward(item_seq, item_seq_len)
        hidden = self.dropout(self.LayerNorm(self.item_embedding(item_seq) + self.position_embedding.weight))
        mask, blocks = self.get_attention_mask(item_seq), [*self.item_encoder.layer]
        for number, block in enumerate(blocks):
            at = item_seq_len - 1 if block is blocks[-1] else None
            band = self.get_buffer(f"band_{number}")
            hidden = block.feed_forward(hybrid_attention(block.hybrid_attention, band, hidden, mask, at))
        return hidden

    def get_same_item_index(self, dataset: Any) -> dict[int, np.ndarray]:
        """Item -> its samples as a target, (n,) int, ascending; only one if all have the same history.

        RecBole draws until it finds another history, unless there is only one sample, and searches once per sample.
        """
        samples = dataset.inter_feat
        target, lengths = samples[self.ITEM_ID].numpy(), samples[self.ITEM_SEQ_LEN].numpy()
        order = np.argsort(target, kind="stable")
        items, first = np.unique(target[order], return_index=True)
        index = dict(zip(items.tolist(), np.split(order, first[1:]), strict=True))
        for item, rows in index.items():
            if len(rows) > 1 and (lengths[rows] == lengths[rows[0]]).all():
                histories = samples[self.ITEM_SEQ][rows]
                if (histories == histories[0]).all():
                    index[item] = rows[:1]
        return index

    def info_nce(
        self, z_i: Tensor, z_j: Tensor, temp: float, batch_size: int, sim: str = "dot"
    ) -> tuple[Tensor, Tensor]:
        """Logits (2B, 2B - 1 or 2B) and labels (2B,) for views (B, D), (B, D); one row alone has no negatives."""
        if batch_size == 1:
            return torch.zeros(2, 1, device=z_i.device), torch.zeros(2, dtype=torch.long, device=z_i.device)
        if self.fourier or sim != "dot":
            return super().info_nce(z_i, z_j, temp, batch_size, sim)
        # a row's own column has no weight; RecBole copies the others, the label first
        z = torch.cat([z_i, z_j])
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        return (z @ z.T / temp).masked_fill(own, -torch.inf), torch.arange(len(z), device=z.device).roll(batch_size)
