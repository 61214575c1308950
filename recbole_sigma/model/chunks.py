"""Encoding rows of similar length together: the cost of the real items, whatever the padding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TOKENS_TOGETHER = 2**17  # positions encoded together: bounds the memory of a batch of long histories

Encode = Callable[[Tensor, Tensor], Tensor]


def encode_in_chunks(encode: Encode, item_seq: Tensor, lengths: Tensor, ratio: float) -> Tensor:
    """`encode` over rows of similar length at a time: (B, L), (B,) -> (B, D), rows in their order.

    Args:
        encode: (n, l), (n,) -> (n, D), of rows that are independent of each other and of l.
        item_seq: (B, L), right-padded with 0.
        lengths: (B,), at least 1.
        ratio: see `length_chunks`.
    """
    order = torch.argsort(lengths, stable=True)
    item_seq, lengths = item_seq[order], lengths[order]
    represented = [
        part(encode)(item_seq[rows, :width], lengths[rows]) for rows, width, part in token_chunks(lengths, ratio)
    ]
    return torch.cat(represented)[torch.argsort(order)]


def token_chunks(lengths: Tensor, ratio: float) -> list[tuple[slice, int, Callable[[Any], Any]]]:
    """`length_chunks`, cut further to at most TOKENS_TOGETHER positions: rows, width, and how to call what encodes.

    If a batch has more positions than that, chunks are encoded once more in the backward pass instead of kept: memory
    is that of one chunk, whatever the batch.
    """
    lengths = lengths.cpu()  # a GPU is waited for once, and not for every chunk
    chunks = []
    for rows in length_chunks(lengths, ratio):
        width = int(lengths[rows.stop - 1])
        step = max(TOKENS_TOGETHER // width, 1)
        for start in range(rows.start, rows.stop, step):
            chunks.append((slice(start, min(start + step, rows.stop)), width))
    positions = sum((rows.stop - rows.start) * width for rows, width in chunks)
    again = torch.is_grad_enabled() and positions > TOKENS_TOGETHER and len(chunks) > 1
    return [(rows, width, _twice if again else _once) for rows, width in chunks]


def _once(encode: Any) -> Any:
    return encode


def _twice(encode: Any) -> Any:
    return partial(checkpoint, encode, use_reentrant=False)


def length_chunks(lengths: Tensor, ratio: float) -> list[slice]:
    """Cut rows into chunks whose longest is at most `ratio` times the shortest.

    Args:
        lengths: (B,), ascending.
        ratio: 1 or more; infinity gives one chunk.
    """
    distinct, counts = torch.unique_consecutive(lengths, return_counts=True)
    chunks, start, stop, shortest = [], 0, 0, None
    for length, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        if shortest is None:
            shortest = length
        elif length > shortest * ratio:
            chunks.append(slice(start, stop))
            start, shortest = stop, length
        stop += count
    return [*chunks, slice(start, stop)]
