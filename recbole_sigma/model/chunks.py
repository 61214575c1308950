"""Encoding rows of similar length together: the cost of the real items, whatever the padding."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recbole_sigma.ops.softmax import softmax_loss

TOKENS_TOGETHER = 2**17  # positions encoded together: limits the memory of a batch of long histories


class ByLength(SequentialRecommender):
    """Mixin before a class of RecBole's: its `forward` on rows of similar length at a time (setting `by_length`).

    For classes whose output at a row's last item depends on neither the padding after it nor the other rows. Dropout
    draws other numbers than on the padded batch; all else is equal, and (B, V) scores are not kept. With `by_length:
    false` the batch is padded to MAX_ITEM_LIST_LENGTH and goes to RecBole's `forward` and loss unchanged.
    """

    accepts_any_length = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.by_length: bool = config["by_length"]
        self.length_ratio: float = config["length_ratio"]

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D)."""
        if self.by_length:
            return encode_in_chunks(super().forward, item_seq, lengths, self.length_ratio)
        return super().forward(F.pad(item_seq, (0, self.max_seq_length - item_seq.size(1))), lengths)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch, ()."""
        if not self.by_length or self.loss_type != "CE":
            return super().calculate_loss(interaction)
        representation = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return softmax_loss(representation, self.item_embedding.weight, interaction[self.POS_ITEM_ID])


def encode_in_chunks(
    encode: Callable[[Tensor, Tensor], Tensor], item_seq: Tensor, lengths: Tensor, ratio: float
) -> Tensor:
    """`encode` on rows of similar length at a time: (B, L) right-padded, (B,) at least 1 -> (B, D), in their order.

    `encode`: (n, l), (n,) -> (n, D); a row's result depends on neither the other rows nor l. `ratio`: `length_chunks`.
    """
    order = torch.argsort(lengths, stable=True)
    return encode_sorted(encode, [item_seq[order]], lengths[order], ratio)[torch.argsort(order)]


def encode_sorted(encode: Callable[..., Tensor], sequences: list[Tensor], lengths: Tensor, ratio: float) -> Tensor:
    """The concatenated results of `encode(*sequences, lengths)` on chunks (n, l), (n,) of `sequences` (B, L) each.

    `lengths` (B,), at least 1, ascend. Beyond TOKENS_TOGETHER positions in a batch, `encode` runs once more in the
    backward pass instead of keeping its intermediate results: the memory is that of one chunk, whatever the batch.
    """
    on_cpu = lengths.cpu()  # one synchronisation with a GPU instead of one per chunk
    chunks = []
    for rows in length_chunks(on_cpu, ratio):
        width = int(on_cpu[rows.stop - 1])
        step = max(TOKENS_TOGETHER // width, 1)
        for start in range(rows.start, rows.stop, step):
            chunks.append((slice(start, min(start + step, rows.stop)), width))
    positions = sum((rows.stop - rows.start) * width for rows, width in chunks)
    recompute = torch.is_grad_enabled() and positions > TOKENS_TOGETHER and len(chunks) > 1
    encoded = []
    for rows, width in chunks:
        inputs = *(sequence[rows, :width] for sequence in sequences), lengths[rows]
        encoded.append(checkpoint(encode, *inputs, use_reentrant=False) if recompute else encode(*inputs))
    return torch.cat(encoded)


def length_chunks(lengths: Tensor, ratio: float) -> list[slice]:
    """Chunks of rows, by ascending `lengths` (B,), whose longest is at most `ratio` >= 1 times the shortest."""
    distinct, counts = torch.unique_consecutive(lengths, return_counts=True)
    chunks, start, stop, shortest = [], 0, 0, int(lengths[0])
    for length, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        if length > shortest * ratio:
            chunks.append(slice(start, stop))
            start, shortest = stop, length
        stop += count
    return [*chunks, slice(start, stop)]
