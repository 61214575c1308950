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
    rows = inner[at.masked_fill(~real, 0)]  # (rows, L)
    steps = F.pad(step[rows].masked_fill(~real[..., None], 0).cumsum(1), (0, 0, 1, 0))  # (rows, L + 1, E)
    decays = torch.exp(steps[..., None] * A)  # a_1 ... a_c
    addends = decays[:, :-1] * drive[rows].masked_fill(~real[..., None], 0)[..., None] * B[rows][..., None, :]
    sums = F.pad(addends.cumsum(1), (0, 0, 0, 0, 1, 0))

    def take_steps(h: Tensor, inputs: Tensor) -> Tensor:
        for v in inputs.T:
            after = torch.exp(step[v][..., None] * A) * h + drive[v][..., None] * B[v][:, None]
            h = torch.where((v >= 0)[:, None, None], after, h)
        return h

    row = torch.repeat_interleave(torch.arange(len(lengths), device=step.device), query_offsets.diff())
    h = take_steps(step.new_zeros(len(C), *A.shape), first)
    h = decays[row, counts] * h + sums[row, counts]
    return (take_steps(h, last) * C[:, None]).sum(-1)
