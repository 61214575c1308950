"""Slow versions of the papers' equations: one row, item by item, in NumPy and float64."""

import math

import numpy as np
from torch import nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.linear_attention import LinearAttention
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.spectral_filter import SpectralFilter


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    out = weight @ x
    return out if layer.bias is None else out + layer.bias.detach().numpy()


def slow_conv(layer: SequenceConv, x: np.ndarray) -> np.ndarray:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    half = weight.shape[2] // 2
    out = np.tile(bias, (len(x), 1))
    for position in range(len(x)):
        for k in range(weight.shape[2]):
            if 0 <= position + k - half < len(x):
                out[position] += weight[:, :, k] @ x[position + k - half]
    return out


def slow_gru(gru: nn.GRU, x: np.ndarray, reset_before: bool = False) -> np.ndarray:
    w_ih, w_hh = gru.weight_ih_l0.detach().numpy(), gru.weight_hh_l0.detach().numpy()
    b_ih = gru.bias_ih_l0.detach().numpy() if gru.bias else np.zeros(len(w_ih))
    b_hh = gru.bias_hh_l0.detach().numpy() if gru.bias else np.zeros(len(w_hh))
    h, out = np.zeros(gru.hidden_size), []
    for each in x:
        (ir, iz, i_n), (hr, hz, hn) = (np.split(w @ v + b, 3) for w, v, b in ((w_ih, each, b_ih), (w_hh, h, b_hh)))
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        if reset_before:
            n = len(h)
            hn, r = w_hh[2 * n :] @ (r * h) + b_hh[2 * n :], 1
        h = (1 - z) * np.tanh(i_n + r * hn) + z * h
        out.append(h)
    return np.array(out)


def slow_mamba(block: Mamba, x: np.ndarray) -> np.ndarray:
    """Algorithm 2 of the paper, item by item; (L, D) -> (L, D)."""
    E, N, R = block.d_inner, block.d_state, block.dt_rank
    A = -np.exp(block.A_log.detach().numpy())
    skip = block.D.detach().numpy()
    conv, conv_bias = block.conv1d.weight.detach().numpy()[:, 0], block.conv1d.bias.detach().numpy()
    width = conv.shape[1]
    projected = np.array([linear(block.in_proj, each) for each in x])
    window, state, out = np.zeros((width, E)), np.zeros((E, N)), []
    for xz in projected:
        window = np.vstack([window[1:], xz[:E]])
        u = silu((window * conv.T).sum(0) + conv_bias)
        low = linear(block.x_proj, u if block.selective else np.ones(E))
        delta = np.log1p(np.exp(linear(block.dt_proj, low[:R])))
        B, C = low[R : R + N], low[R + N :]
        state = np.exp(delta[:, None] * A) * state + (delta * u)[:, None] * B
        out.append(linear(block.out_proj, (state @ C + skip * u) * silu(xz[E:])))
    return np.array(out)


def slow_norm(norm: nn.Module, x: np.ndarray) -> np.ndarray:
    """LayerNorm over the last axis, or nothing."""
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return normed * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def slow_feed_forward(layer: FeedForward, x: np.ndarray) -> np.ndarray:
    """(D,) -> (D,)"""
    inner = linear(layer.inner, x)
    gelu = np.array([each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in inner])
    return slow_norm(layer.norm, linear(layer.outer, gelu) + x)


def slow_filter(layer: SpectralFilter, x: np.ndarray) -> np.ndarray:
    """The transform as sums over all `slots`, zeros after the row; (L, D) -> (L, D)."""
    slots, weight = layer.slots, layer.weight.detach().numpy()
    out = np.zeros_like(x)
    for f in range(slots // 2 + 1):
        spectrum = sum(each * np.exp(-2j * np.pi * f * t / slots) for t, each in enumerate(x)) / math.sqrt(slots)
        spectrum = spectrum * (weight[f, :, 0] + 1j * weight[f, :, 1])
        twice = 1 if f == 0 or 2 * f == slots else 2  # a real signal's negative frequencies
        for t in range(len(x)):
            out[t] += twice * (spectrum * np.exp(2j * np.pi * f * t / slots)).real / math.sqrt(slots)
    return slow_norm(layer.norm, out + x)


def slow_linear_attention(layer: LinearAttention, x: np.ndarray) -> np.ndarray:
    """Scores of every pair of positions, as attention is defined; (L, D) -> (L, D)."""
    query, key, value = (np.array([linear(each, row) for row in x]) for each in (layer.query, layer.key, layer.value))
    query, key = (np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1) for x in (query, key))
    d = x.shape[1] // layer.n_heads
    out = np.zeros_like(x)
    for head in range(layer.n_heads):
        own = slice(head * d, (head + 1) * d)
        for t in range(len(x)):
            q = query[t, own] / np.sqrt((query[t, own] ** 2).sum()) / math.sqrt(d)
            for s in range(len(x)):
                k = key[s, own] / np.sqrt((key[:, own] ** 2).sum(0)) / math.sqrt(len(x))
                out[t, own] += (q @ k) * value[s, own]
    return np.array([linear(layer.output, row) for row in out])
