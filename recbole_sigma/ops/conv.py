"""The causal depthwise convolution behind one function, whatever the device."""

from torch import Tensor

from recbole_sigma.ops.cuda import causal_conv1d_cuda
from recbole_sigma.ops.scan import check_lengths, check_tensors


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None = "silu", lengths: Tensor | None = None
) -> Tensor:
    """Each channel's convolution over its own past, with bias and activation, as before Mamba's scan.

        y[b, l, e] = SiLU(bias[e] + sum_k weight[e, k] x[b, l - K + 1 + k, e]),     x zero before the row's start

    Args:
        x: (B, L, E); weight: (E, K); bias: (E,)
        activation: "silu" or None
        lengths: (B,) int, where each row ends: y is zero beyond, x is not read there, and it costs nothing on CPU

    Returns y (B, L, E), in x's dtype. Raises TypeError for wrong dtypes and ValueError for wrong shapes, lengths,
    activations and devices.
    """
    if activation not in ("silu", None):
        raise ValueError(f'activation must be "silu" or None, not {activation!r}')
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(f"x must be (B, L, E) and weight (E, K > 0), not {tuple(x.shape)} and {tuple(weight.shape)}")
    rows, length, channels = x.shape
    check_tensors(x.device, x=(x, x.shape), weight=(weight, (channels, weight.shape[1])), bias=(bias, (channels,)))
    check_lengths(lengths, rows, length)
    if x.device.type == "cuda":
        return causal_conv1d_cuda(x, weight, bias, activation, lengths)
    if x.device.type == "cpu":
        from recbole_sigma.ops.cpu.conv import causal_conv1d_cpu  # here, because it imports numba

        return causal_conv1d_cpu(x, weight, bias, activation, lengths)
    raise ValueError(f"causal_conv1d runs on cpu and cuda, not on {x.device.type}")
