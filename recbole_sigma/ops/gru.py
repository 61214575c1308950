"""The gated recurrent unit: one function for CPU and CUDA."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_sigma.ops.cuda import padding
from recbole_sigma.ops.rows import check_rows, check_tensors, on_padded_rows
from recbole_sigma.ops.traced import exporting, gru_traced


def gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """One layer of torch.nn.GRU over each row of a batch; on CPU by a kernel that stops each row at its length.

        r = sigmoid(W_ir x_l + b_ir + W_hr h_(l-1) + b_hr)
        z = sigmoid(W_iz x_l + b_iz + W_hz h_(l-1) + b_hz)
        n = tanh(W_in x_l + b_in + r (W_hn h_(l-1) + b_hn))
        h_l = (1 - z) n + z h_(l-1),     h_0 = 0

    Args:
        x: (B, L, I), finite in the padding too, which is projected and then ignored
        weight_ih: (3D, I), weight_hh: (3D, D), the gates in torch's order r, z, n
        bias_ih, bias_hh: (3D,), both optional
        lengths: (B,) int, where each row ends: the states are zero beyond, and cost nothing on CPU
        offsets: (rows + 1,) int; x is (T, I) then, the states (T, D), rows without padding (ops/rows.py)

    Returns states (B, L, D), in x's dtype. Raises TypeError for wrong dtypes and ValueError for wrong shapes, lengths
    and devices. Source: Cho et al. (arXiv 1406.1078), in the form and with the parameters of torch.nn.GRU.
    """
    flat = offsets is not None
    if x.dim() != 3 - flat or weight_hh.dim() != 2 or weight_hh.shape[1] == 0:
        expected = "(T, I)" if flat else "(B, L, I)"
        raise ValueError(f"x must be {expected}, weight_hh (3D, D > 0), not {tuple(x.shape)}, {tuple(weight_hh.shape)}")
    inputs, hidden = x.shape[-1], weight_hh.shape[1]
    gates = 3 * hidden
    check_tensors(
        x.device, x=(x, x.shape), weight_hh=(weight_hh, (gates, hidden)), weight_ih=(weight_ih, (gates, inputs)),
        bias_ih=(bias_ih, (gates,)), bias_hh=(bias_hh, (gates,)),
    )  # fmt: skip
    if exporting():
        return gru_traced(x, weight_ih, weight_hh, bias_ih, bias_hh, lengths)
    check_rows(x.shape, lengths, offsets)
    weight_ih, weight_hh = weight_ih.to(x.dtype), weight_hh.to(x.dtype)
    bias_ih, bias_hh = (None if bias is None else bias.to(x.dtype) for bias in (bias_ih, bias_hh))
    if x.device.type == "cuda":

        def padded(x: Tensor, lengths: Tensor | None) -> Tensor:
            return gru_torch(x, weight_ih, weight_hh, bias_ih, bias_hh, lengths)

        return on_padded_rows(padded, [x], offsets, lengths)
    if x.device.type == "cpu":
        from recbole_sigma.ops.cpu.arrays import RowLayout
        from recbole_sigma.ops.cpu.gru import recurrence_cpu  # here, because it imports numba

        rows = RowLayout.of(x.shape, lengths, offsets)
        states = recurrence_cpu(F.linear(x.flatten(0, -2), weight_ih, bias_ih), weight_hh, bias_hh, rows)
        return states.to(x.dtype).unflatten(0, x.shape[:-1])
    raise ValueError(f"gru runs on cpu and cuda, not on {x.device.type}")


def reset_before_cell(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> Tensor:
    """One step of a GRU as first published (Cho et al., arXiv 1406.1078; SIGMA eq. 7): (..., I), (..., D) -> (..., D).

    Unlike in torch.nn.GRU, whose parameters it takes, the reset gate scales the state before the recurrent product:
    n = tanh(W_in x + b_in + W_hn (r h) + b_hn).
    """
    D = h.shape[-1]
    recurrent_bias = None if bias_hh is None else bias_hh[2 * D :]
    inputs = F.linear(x, weight_ih, bias_ih)
    gates = F.linear(h, weight_hh[: 2 * D], None if bias_hh is None else bias_hh[: 2 * D])
    r, z = torch.sigmoid(inputs[..., : 2 * D] + gates).chunk(2, -1)
    n = torch.tanh(inputs[..., 2 * D :] + F.linear(r * h, weight_hh[2 * D :], recurrent_bias))
    return (1 - z) * n + z * h


def gru_reset_before(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """`gru` with steps of `reset_before_cell`: a loop over positions by torch, slower than `gru`, on any device."""

    def padded(x: Tensor, lengths: Tensor | None) -> Tensor:
        states = [x.new_zeros(len(x), weight_hh.shape[1])]
        for each in x.unbind(1):
            states.append(reset_before_cell(each, states[-1], weight_ih, weight_hh, bias_ih, bias_hh))
        stacked = torch.stack(states[1:], 1)
        return stacked if lengths is None else stacked.masked_fill(padding(lengths, stacked), 0)

    return on_padded_rows(padded, [x], offsets, lengths)


def gru_torch(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """`gru` by torch's kernels (cuDNN on CUDA) for checked arguments; padding is computed and then masked."""
    rows, length, _ = x.shape
    hidden = weight_hh.shape[1]
    if x.numel() == 0:
        return x.new_zeros(rows, length, hidden)
    weights = [weight_ih, weight_hh]  # in nn.GRU's order
    has_bias = bias_ih is not None or bias_hh is not None
    if has_bias:
        weights += [x.new_zeros(3 * hidden) if bias is None else bias for bias in (bias_ih, bias_hh)]
    start = x.new_zeros(1, rows, hidden)
    training = torch.is_grad_enabled()  # cuDNN keeps what its backward pass needs only in training mode
    states = torch._VF.gru(x, start, weights, has_bias, 1, 0.0, training, False, True)[0]
    return states if lengths is None else states.masked_fill(padding(lengths, states), 0)
