"""The causal depthwise convolution behind one function, whatever the device."""

from torch import Tensor

from recbole_sigma.ops.cuda import causal_conv1d_cuda
from recbole_sigma.ops.rows import check_rows, check_tensors, on_padded_rows
from recbole_sigma.ops.traced import causal_conv1d_traced, exporting


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None = "silu", lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Each channel's convolution over its own past, with bias and activation, as before Mamba's scan.

        y[b, l, e] = SiLU(bias[e] + sum_k weight[e, k] x[b, l - K + 1 + k, e]),     x zero before the row's start

    Args:
        x: (B, L, E); weight: (E, K); bias: (E,)
        activation: "silu" or None
        lengths: (B,) int, where each row ends: y is zero beyond, x is not read there, and it costs nothing on CPU
        offsets: (rows + 1,) int; x and y are (T, E) then, rows without padding (ops/rows.py)

    Returns y (B, L, E), in x's dtype. Raises TypeError for wrong dtypes and ValueError for wrong shapes, lengths,
    activations and devices.
    """
    if activation not in ("silu", None):
        raise ValueError(f'activation must be "silu" or None, not {activation!r}')
    flat = offsets is not None
    if x.dim() != 3 - flat or weight.dim() != 2 or weight.shape[1] == 0:
        expected = "(T, E)" if flat else "(B, L, E)"
        raise ValueError(f"x must be {expected}, weight (E, K > 0), not {tuple(x.shape)} and {tuple(weight.shape)}")
    channels = x.shape[-1]
    check_tensors(x.device, x=(x, x.shape), weight=(weight, (channels, weight.shape[1])), bias=(bias, (channels,)))
    if exporting():
        return causal_conv1d_traced(x, weight, bias, activation, lengths)
    check_rows(x.shape, lengths, offsets)
    if x.device.type == "cuda":

        def padded(x: Tensor, lengths: Tensor | None) -> Tensor:
            return causal_conv1d_cuda(x, weight, bias, activation, lengths)

        return on_padded_rows(padded, [x], offsets, lengths)
    if x.device.type == "cpu":
        from recbole_sigma.ops.cpu.arrays import RowLayout
        from recbole_sigma.ops.cpu.conv import causal_conv1d_cpu  # here, because it imports numba

        rows = RowLayout.of(x.shape, lengths, offsets)
        return causal_conv1d_cpu(x.flatten(0, -2), weight, bias, activation, rows).view(x.shape)
    raise ValueError(f"causal_conv1d runs on cpu and cuda, not on {x.device.type}")
