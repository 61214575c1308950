"""FEARec's hybrid attention (arXiv 2304.09184) as RecBole computes it, without Fourier transforms of all channels."""

import math
from typing import Any

import torch
from torch import Tensor


def band_pass(frequencies: list[int], length: int) -> Tensor:
    """The filter that keeps these frequencies of a signal of `length`, irfft(mask rfft(x)), as a matrix (L, L)."""
    kept = torch.zeros(length // 2 + 1)
    kept[frequencies] = 1
    return torch.fft.irfft(kept * torch.fft.rfft(torch.eye(length)), n=length)


def hybrid_attention(layer: Any, band: Tensor, hidden: Tensor, mask: Tensor, at: Tensor | None = None) -> Tensor:
    """RecBole's `HybridAttention` with `dual_domain` and `std`: (B, L, D) -> (B, L, D), or (B, D) at positions (B,).

    With the filter P = `band` (L, L) let q = P (H W_q), k = P (H W_k), v = H W_v. Attention over positions is
    softmax(q k^T / sqrt(E)) P v. Auto-correlation averages v, moved by each of the best delays, by the softmax of
    their correlations mean(q(t + delay) k(t)); P is a projection that commutes with moves, so these are the sums along
    the circular diagonals of the same products q k^T.
    """
    length, heads = hidden.shape[1], layer.num_attention_heads
    gain = band.sum(1, keepdim=True)  # P applied to a constant, such as a bias
    filtered = torch.matmul(band, hidden)
    q, k = (
        (filtered @ linear.weight.T + gain * linear.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for linear in (layer.query_layer, layer.key_layer)
    )
    products = q @ k.transpose(-1, -2)  # (B, heads, L, L)
    moment = torch.arange(length, device=hidden.device)
    diagonals = ((moment + moment[:, None]) % length * length + moment).flatten()  # of each delay: (t + delay, t)
    of_delays = products.sum(1).flatten(1).index_select(1, diagonals).unflatten(1, (length, -1)).sum(-1)
    count = int(layer.factor * math.log(length))
    weights, delays = best_delays(of_delays / hidden.shape[2], count, layer.training)
    row = torch.arange(len(hidden), device=hidden.device)
    if at is not None:
        products, mask = (each.take_along_dim(at[:, None, None, None], 2) for each in (products, mask))
    attention = layer.attn_dropout((products / math.sqrt(layer.attention_head_size) + mask).softmax(-1))
    if at is None:
        averaged, over_positions = _everywhere(layer.value_layer, band, hidden, attention, weights, delays)
    else:
        moments = hidden[row[:, None], (at[:, None] + delays) % length]
        averaged, over_positions = _in_one_place(layer.value_layer, band, hidden, attention, weights, moments)
    context = (1 - layer.spatial_ratio) * averaged + layer.spatial_ratio * over_positions
    output: Tensor = layer.LayerNorm(
        layer.out_dropout(layer.dense(context)) + (hidden if at is None else hidden[row, at])
    )
    return output


def _everywhere(
    linear: Any, band: Tensor, hidden: Tensor, attention: Tensor, weights: Tensor, delays: Tensor
) -> tuple[Tensor, Tensor]:
    """Moved values, averaged by `weights`, and values averaged by `attention` (B, heads, L, L): (B, L, D) twice."""
    values = linear(hidden)
    terms = (share[:, None, None] * moved(values, delays[:, n]) for n, share in enumerate(weights.unbind(1)))
    averaged = sum(terms, start=torch.zeros_like(values))
    heads = torch.matmul(band, values).unflatten(-1, (attention.shape[1], -1)).transpose(1, 2)
    return averaged, (attention @ heads).transpose(1, 2).flatten(2)


def _in_one_place(
    linear: Any, band: Tensor, hidden: Tensor, attention: Tensor, weights: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for one position of each row, (B, D) twice, by sums of H, which is then multiplied with W_v once.

    `attention` (B, heads, 1, L), `moments` (B, delays, D): H at the delays.
    """
    averaged = linear((weights[..., None] * moments).sum(1))
    attention = (attention @ band)[:, :, 0]  # (B, heads, L)
    weight, bias = (each.unflatten(0, (attention.shape[1], -1)) for each in (linear.weight, linear.bias))
    summed = torch.einsum("bhd,hed->bhe", attention @ hidden, weight)
    return averaged, (summed + attention.sum(-1, keepdim=True) * bias).flatten(1)


def best_delays(correlations: Tensor, count: int, together: bool) -> tuple[Tensor, Tensor]:
    """Weights (B, count) and delays, (B, count), or (1, count) if those of the batch's mean are chosen `together`."""
    if together:
        delays = correlations.mean(0, keepdim=True).topk(count).indices
        return correlations.index_select(1, delays[0]).softmax(-1), delays
    best, delays = correlations.topk(count)
    return best.softmax(-1), delays


def moved(values: Tensor, delay: Tensor) -> Tensor:
    """values(t + delay), around the end: (B, L, D), (B,) or (1,) -> (B, L, D)"""
    if len(delay) == 1:
        return values.roll(-int(delay), 1)
    moment = torch.arange(values.shape[1], device=values.device)
    return values.take_along_dim(((moment + delay[:, None]) % values.shape[1])[..., None], 1)
