"""Encoding rows of similar length together: the cost of the real items, whatever the padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recbole_sigma.ops.traced import exporting

LENGTH_RATIO = {"cpu": 1.25, "cuda": 16.0}  # a GPU rather computes padding than it starts the kernels of more chunks
SPARE = 256  # positions of padding in a chunk that cost less than the overhead of another chunk
TOKENS_TOGETHER = 2**17  # positions encoded together: limits the memory of a batch of long histories


def length_ratio(config: Any) -> float:
    """The setting `length_ratio`, or the default of the device."""
    return float(config["length_ratio"] or LENGTH_RATIO[config["device"].type])


def encode_in_chunks(
    encode: Callable[[Tensor, Tensor], Tensor], item_seq: Tensor, lengths: Tensor, ratio: float
) -> Tensor:
    """`encode` on rows of similar length at a time: (B, L) right-padded, (B,) at least 1 -> (B, D), in their order.

    `encode`: (n, l), (n,) -> (n, D); a row's result depends on neither the other rows nor l. `ratio`: `length_chunks`.
    """
    if exporting() or len(item_seq) == 1:  # an export does not know how many chunks there are
        return encode(item_seq, lengths)
    order = torch.argsort(lengths, stable=True)
    item_seq, lengths = item_seq[order], lengths[order]
    encoded = encode_sorted(lambda rows, width: encode(item_seq[rows, :width], lengths[rows]), lengths, ratio)
    return encoded.index_select(0, torch.argsort(order))


def encode_sorted(encode: Callable[[slice, int], Tensor], lengths: Tensor, ratio: float) -> Tensor:
    """The concatenated results of `encode(rows, width)` on chunks of rows of similar length; `width`: the longest.

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
    if torch.is_grad_enabled() and positions > TOKENS_TOGETHER and len(chunks) > 1:
        return torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([encode(*chunk) for chunk in chunks])


def length_chunks(lengths: Tensor, ratio: float) -> list[slice]:
    """Chunks of rows, by ascending `lengths` (B,), whose longest is at most `ratio` >= 1 times the shortest.

    A chunk with at most SPARE positions of padding may be more uneven.
    """
    distinct, counts = torch.unique_consecutive(lengths, return_counts=True)
    chunks, start, stop, padding = [], 0, 0, 0
    shortest = longest = int(lengths[0])
    for length, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        padding += (stop - start) * (length - longest)
        if length > shortest * ratio and padding > SPARE:
            chunks.append(slice(start, stop))
            start, shortest, padding = stop, length, 0
        stop, longest = stop + count, length
    return [*chunks, slice(start, stop)]
