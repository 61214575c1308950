"""The scan of every reversed prefix of a history, by a running sum."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_sigma.ops.rows import check_tensors


def prefix_scan(
    step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor,
    inner: Tensor, offsets: Tensor, counts: Tensor, query_offsets: Tensor, first: Tensor, last: Tensor,
) -> Tensor:  # fmt: skip
    """Outputs of scans that read, for each query, a few inputs, then the start of a row backwards, then a few inputs.

    With a_v = exp(step_v A) and b_v = drive_v B_v of an input v, a step is h <- a_v h + b_v. A query takes the steps of
    `first`, then those of the row's inputs c, c - 1, ..., 1 (`counts` is c), then those of `last`; y = C h.
    The steps in the middle cost nothing per query, because they are h <- (a_1 ... a_c) h + s_c with the running sum
    s_c = s_(c - 1) + (a_1 ... a_(c - 1)) b_c of the row.

    Args:
        step, drive: (V, E) step sizes, and step sizes times inputs; A: (E, N) decay rates; B: (V, N)
        C: (Q, N), of each query
        inner: (T,) int, the inputs of the rows, one row after the other; offsets: (rows + 1,) int, where each starts
        counts: (Q,) int, at most the row's length, ascending within a row
        query_offsets: (rows + 1,) int, where each row's queries start
        first, last: (Q, F), (Q, R) int, the inputs before and after; -1 is no step

    Returns y (Q, E). Raises TypeError and ValueError for wrong dtypes and shapes. Sources: SIGMA (arXiv 2408.11451,
    section 2.3.1) for the reversed prefixes, Mamba (arXiv 2312.00752, equation (2)) for the step.
    """
    if step.dim() != 2 or A.dim() != 2 or C.dim() != 2:
        raise ValueError(f"step must be (V, E), A (E, N), C (Q, N), not {[tuple(x.shape) for x in (step, A, C)]}")
    (inputs, channels), (_, states), queries = step.shape, A.shape, len(C)
    check_tensors(
        step.device, step=(step, (inputs, channels)), drive=(drive, (inputs, channels)), A=(A, (channels, states)),
        B=(B, (inputs, states)), C=(C, (queries, states)),
    )  # fmt: skip
    if len(counts) != queries or len(first) != queries or len(last) != queries or len(offsets) != len(query_offsets):
        raise ValueError("counts, first and last need a row for each row of C; offsets and query_offsets the same rows")
    if step.device.type == "cpu":
        from recbole_sigma.ops.cpu.prefix_scan import prefix_scan_cpu  # here, because it imports numba

        return prefix_scan_cpu(step, drive, A, B, C, inner, offsets, counts, query_offsets, first, last)
    return prefix_scan_torch(step, drive, A, B, C, inner, offsets, counts, query_offsets, first, last)


def prefix_scan_torch(
    step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor,
    inner: Tensor, offsets: Tensor, counts: Tensor, query_offsets: Tensor, first: Tensor, last: Tensor,
) -> Tensor:  # fmt: skip
    """`prefix_scan` of torch's operations, in memory of (rows, longest row, E, N) and (Q, E, N)."""
    lengths = offsets.diff()
    at = offsets[:-1, None] + torch.arange(int(lengths.max()), device=step.device)
    real = at < offsets[1:, None]
    steps, drives, to_state = _taken(step, drive, B, inner[at.masked_fill(~real, 0)].masked_fill(~real, -1))
    decays = torch.exp(F.pad(steps.cumsum(1), (0, 0, 1, 0))[..., None] * A)  # a_1 ... a_c: (rows, L + 1, E, N)
    addends = decays[:, :-1] * (drives[..., None] * to_state[:, :, None])
    sums = F.pad(addends.cumsum(1), (0, 0, 0, 0, 1, 0))

    # each query's own steps, (Q, F + R, E, N); one that is not taken multiplies by 1 and adds 0
    steps, drives, to_state = _taken(step, drive, B, torch.cat([first, last], 1))
    own_decays, own_addends = torch.exp(steps[..., None] * A), drives[..., None] * to_state[:, :, None]
    row = torch.searchsorted(query_offsets, torch.arange(len(C), device=C.device), right=True) - 1
    end = row * decays.shape[1] + counts
    own = [*zip(own_decays.unbind(1), own_addends.unbind(1), strict=True)]
    h = step.new_zeros(len(C), *A.shape)
    for decay, addend in own[: first.shape[1]]:
        h = torch.addcmul(addend, decay, h)
    h = torch.addcmul(sums.flatten(0, 1).index_select(0, end), decays.flatten(0, 1).index_select(0, end), h)
    for decay, addend in own[first.shape[1] :]:
        h = torch.addcmul(addend, decay, h)
    return (h * C[:, None]).sum(-1)


def _taken(step: Tensor, drive: Tensor, B: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a scan reads of inputs (n, S), -1 for none: steps, drives (n, S, E), zero for none; B (n, S, N)"""
    chosen = inputs.clamp(min=0).flatten()
    steps, drives, to_state = (x.index_select(0, chosen).unflatten(0, inputs.shape) for x in (step, drive, B))
    nothing = (inputs < 0)[..., None]
    return steps.masked_fill(nothing, 0), drives.masked_fill(nothing, 0), to_state
