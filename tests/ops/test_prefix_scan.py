"""The prefix scan against a loop over each query's steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_sigma.ops.prefix_scan import prefix_scan, prefix_scan_torch
from tests.ops.operations import assert_all_close, outputs_and_gradients

INDICES = ("inner", "offsets", "counts", "query_offsets", "first", "last")


def arguments(seed: int = 0, channels: int = 6, states: int = 5, dtype: Any = torch.float32) -> dict[str, Tensor]:
    """Rows of 4, 1, 7 and 3 inputs with 3, 0, 4 and 2 queries, of 2 steps before and 3 after the row's inputs."""
    random = torch.Generator().manual_seed(seed)
    rows, queries = torch.tensor([4, 1, 7, 3]), torch.tensor([3, 0, 4, 2])
    n_inputs, n_queries = 40, int(queries.sum())
    normal = {
        name: torch.randn(shape, generator=random, dtype=dtype)
        for name, shape in {
            "drive": (n_inputs, channels), "B": (n_inputs, states), "C": (n_queries, states)
        }.items()
    }  # fmt: skip
    counts = [
        torch.randint(0, int(n) + 1, (int(count),), generator=random).sort().values
        for n, count in zip(rows, queries, strict=True)
    ]
    first = torch.randint(-1, n_inputs, (n_queries, 2), generator=random)
    last = torch.randint(-1, n_inputs, (n_queries, 3), generator=random)
    own = torch.repeat_interleave(torch.arange(4), queries)[:, None]  # inputs of a query are those of its row
    first, last = (torch.where(x < 0, x, x // 4 * 4 + own) for x in (first, last))
    return {
        "step": torch.rand(n_inputs, channels, generator=random, dtype=dtype),
        "A": -torch.rand(channels, states, generator=random, dtype=dtype) * 3,
        **normal,
        "inner": torch.arange(15) // 4 * 4 + torch.repeat_interleave(torch.arange(4), rows),
        "offsets": torch.nn.functional.pad(rows.cumsum(0), (1, 0)),
        "counts": torch.cat(counts),
        "query_offsets": torch.nn.functional.pad(queries.cumsum(0), (1, 0)),
        "first": first,
        "last": last,
    }


def slow(step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, **where: Any) -> Tensor:
    """Each query's steps, one after the other."""
    lists = {name: indices.tolist() for name, indices in where.items()}
    results = []
    for row in range(len(lists["offsets"]) - 1):
        inner = lists["inner"][lists["offsets"][row] : lists["offsets"][row + 1]]
        for q in range(lists["query_offsets"][row], lists["query_offsets"][row + 1]):
            h = torch.zeros_like(A)
            for v in [*lists["first"][q], *reversed(inner[: lists["counts"][q]]), *lists["last"][q]]:
                if v >= 0:
                    h = torch.exp(step[v, :, None] * A) * h + drive[v, :, None] * B[v]
            results.append((h * C[q]).sum(-1))
    return torch.stack(results)


def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    where = {name: tensors[name] for name in INDICES}
    return {name: x for name, x in tensors.items() if name not in INDICES}, where


@pytest.mark.parametrize("function", [prefix_scan, prefix_scan_torch])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("states", "before", "after"), [(5, 2, 3), (32, 2, 3), (5, 0, 3), (5, 2, 0), (5, 0, 0)])
def test_outputs_and_gradients_are_those_of_the_single_steps(
    function: Any, dtype: Any, bound: float, states: int, before: int, after: int
):
    tensors, where = split(arguments(states=states, dtype=dtype))
    where |= {"first": where["first"][:, :before], "last": where["last"][:, :after]}
    expected = outputs_and_gradients(lambda **x: slow(**x, **where), tensors)
    assert_all_close(outputs_and_gradients(lambda **x: function(**x, **where), tensors), expected, bound)


def test_gradients_are_those_of_finite_differences():
    tensors, where = split(arguments(channels=2, states=3, dtype=torch.float64))
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: prefix_scan(**dict(zip(names, values, strict=True)), **where),
        [tensors[name].requires_grad_() for name in names],
    )
