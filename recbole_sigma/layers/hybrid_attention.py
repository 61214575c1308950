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
    if at is not None:
        products, mask = (each.take_along_dim(at[:, None, None, None], 2) for each in (products, mask))
    attention = layer.attn_dropout((products / math.sqrt(layer.attention_head_size) + mask).softmax(-1))
    if at is None:
        values = layer.value_layer(hidden)
        averaged = sum(weights[:, n, None, None] * moved(values, delays[:, n]) for n in range(count))
        over_positions = attention @ torch.matmul(band, values).unflatten(-1, (heads, -1)).transpose(1, 2)
        over_positions = over_positions.transpose(1, 2).flatten(2)
    else:  # the same by sums of H, which is then multiplied with W_v once
        row = torch.arange(len(hidden), device=hidden.device)
        moments = hidden[row[:, None], (at[:, None] + delays) % length]
        averaged = layer.value_layer((weights[..., None] * moments).sum(1))
        attention = (attention @ band)[:, :, 0]  # (B, heads, L)
        weight, bias = (
            layer.value_layer.weight.unflatten(0, (heads, -1)),
            layer.value_layer.bias.unflatten(0, (heads, -1)),
        )
        summed = torch.einsum("bhd,hed->bhe", attention @ hidden, weight)
        over_positions = (summed + attention.sum(-1, keepdim=True) * bias).flatten(1)
        hidden = hidden[row, at]
    context = (1 - layer.spatial_ratio) * averaged + layer.spatial_ratio * over_positions
    output: Tensor = layer.LayerNorm(layer.out_dropout(layer.dense(context)) + hidden)
    return output


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
