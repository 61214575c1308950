"""On CUDA each operation gives its definition in float64, and our block mamba-ssm's; see tests/model/test_cuda.py."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.ops import causal_conv1d, cuda, selective_scan, selective_scan_reference, softmax
from recbole_sigma.ops.gru import gru
from recbole_sigma.ops.prefix_scan import prefix_scan
from tests.helpers.on_cuda import CPU, DEVICE, WITHOUT_SCAN, assert_close, needs_gpu, needs_mamba_ssm, needs_scan
from tests.ops import test_prefix_scan
from tests.ops.operations import OPERATIONS, conv_arguments, gru_arguments, scan_arguments

pytestmark = [needs_gpu, pytest.mark.usefixtures("full_precision")]


def assert_close_to(
    reference: Any, kernel: Any, tensors: Any, dtype: torch.dtype, bound: float, kept: Any = (), **more: Any
) -> None:
    """Output and gradients of `kernel` on DEVICE in `dtype` are those of `reference` on CPU in float64.

    Both start from the same numbers, rounded to `dtype` except for the parameters in `kept`, which stay in float32.
    """
    results = []
    for function, where in ((kernel, DEVICE), (reference, CPU)):
        leaves = {}
        for name, x in tensors.items():
            of_kernel = torch.float32 if name in kept else dtype
            own = torch.float64 if function is reference else of_kernel
            leaves[name] = x.to(of_kernel).to(where, own, copy=True).requires_grad_()
        y = function(**leaves, **{name: x.to(where) if isinstance(x, Tensor) else x for name, x in more.items()})
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(where, y.dtype)
        (y * weights).sum().backward()
        assert y.device.type == where.type
        results.append([y.detach(), *(leaf.grad for leaf in leaves.values())])
    for name, got, want in zip(["y", *tensors], *results, strict=True):
        assert (got.double().cpu() - want).norm() <= bound * max(float(want.norm()), 1e-6), name


DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)], ids=str)


@needs_scan
@DTYPES
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", [(5, 33, 64, 16), (4, 50, 128, 32), (3, 7, 20, 5), (2, 2500, 16, 8), (1, 1, 8, 4)])
def test_selective_scan_is_the_recurrence(shape: Any, ragged: bool, dtype: torch.dtype, bound: float):
    tensors = scan_arguments(*shape)
    lengths = torch.tensor([shape[1] - 3 * row % (shape[1] + 1) for row in range(shape[0])]) if ragged else None
    kept = ("A", "D", "delta_bias")
    assert_close_to(selective_scan_reference, selective_scan, tensors, dtype, bound, kept, lengths=lengths)


@DTYPES
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize(("channels", "width"), [(64, 4), (64, 2), (20, 4), (16, 5), (16, 1)])
def test_causal_conv1d_is_torchs_convolution(
    channels: int, width: int, activation: Any, dtype: torch.dtype, bound: float
):
    def reference(x: Tensor, weight: Tensor, bias: Tensor, activation: Any, lengths: Tensor) -> Tensor:
        return cuda.causal_conv1d_torch(x, weight, bias, activation).masked_fill(cuda.padding(lengths, x), 0)

    tensors = conv_arguments(4, 20, channels, width)
    more = {"activation": activation, "lengths": torch.tensor([20, 0, 3, 19])}
    assert_close_to(reference, causal_conv1d, tensors, dtype, bound, **more)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_gru_is_the_recurrence(bias: bool, dtype: torch.dtype, bound: float):
    tensors = gru_arguments(4, 20, 32, 48, torch.float64, bias=bias)
    lengths = torch.tensor([20, 0, 3, 19])

    def reference(lengths: Tensor, **leaves: Tensor) -> Tensor:
        module = nn.GRU(32, 48, bias=bias, batch_first=True).double()
        suffixed = {f"{name}_l0": x for name, x in leaves.items() if name != "x"}
        states = torch.func.functional_call(module, suffixed, (leaves["x"],))[0]
        return states.masked_fill(cuda.padding(lengths, states), 0)

    assert_close_to(reference, gru, tensors, dtype, 2 * bound, lengths=lengths)  # a rounded state is read again


@DTYPES
@pytest.mark.parametrize("kept_scores", [softmax.KEPT_SCORES, 1000])
def test_softmax_loss_is_cross_entropy(monkeypatch: Any, kept_scores: int, dtype: torch.dtype, bound: float):
    monkeypatch.setattr(softmax, "KEPT_SCORES", kept_scores)  # with the smaller one, blocks are computed twice
    draw = torch.Generator().manual_seed(0)
    tensors = {"hidden": torch.randn(50, 16, generator=draw), "weight": torch.randn(300, 16, generator=draw) / 4}
    target = torch.randint(1, 300, (50,), generator=draw)

    def reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ weight.T, target)

    assert_close_to(reference, softmax.softmax_loss, tensors, dtype, bound, target=target)


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_in_the_padding_have_no_effect(name: str):
    if name == "selective_scan" and WITHOUT_SCAN:
        pytest.skip(f"no mamba-ssm: {WITHOUT_SCAN}")
    function, arguments, per_row = OPERATIONS[name]
    lengths = torch.tensor([9, 0, 3, 8])
    beyond = (torch.arange(9) >= lengths[:, None])[..., None]
    results = []
    for garbage in (0.0, 30.0):
        tensors = {k: x.masked_fill(beyond, garbage) if k in per_row else x for k, x in arguments(4, 9, 16, 4).items()}
        leaves = {k: x.to(DEVICE).requires_grad_() for k, x in tensors.items()}
        y = function(**leaves, lengths=lengths.to(DEVICE))
        y.square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves.values())])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert not results[0][0].cpu()[beyond[..., 0]].any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_flat_rows_have_the_results_and_gradients_of_the_cpu(name: str):
    if name == "selective_scan" and WITHOUT_SCAN:
        pytest.skip(f"no mamba-ssm: {WITHOUT_SCAN}")
    function, arguments, per_row = OPERATIONS[name]
    tensors = {key: x[0] if key in per_row else x for key, x in arguments(1, 50, 16, 4).items()}
    offsets = torch.tensor([0, 7, 7, 8, 41, 50])
    kernel = partial(function)  # another object than the reference
    assert_close_to(function, kernel, tensors, torch.float32, 2e-5, offsets=offsets)


@pytest.mark.parametrize(("states", "before", "after"), [(5, 2, 3), (32, 2, 3), (5, 0, 3), (5, 2, 0)])
def test_prefix_scan_is_the_single_steps(states: int, before: int, after: int):
    tensors, where = test_prefix_scan.split(test_prefix_scan.arguments(states=states))
    where |= {"first": where["first"][:, :before], "last": where["last"][:, :after]}
    assert_close_to(test_prefix_scan.slow, prefix_scan, tensors, torch.float32, 2e-5, **where)


@needs_mamba_ssm
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("sizes", [(64, 32, 4, 2), (32, 16, 3, 1), (16, 8, 2, 4)])
def test_our_block_is_mamba_ssms(sizes: tuple[int, ...], fast: bool):
    from mamba_ssm import Mamba as Theirs

    torch.manual_seed(0)
    ours, theirs = Mamba(*sizes).to(DEVICE), Theirs(*sizes, use_fast_path=fast).to(DEVICE)
    dtypes = [{name: x.dtype for name, x in block.state_dict().items()} for block in (ours, theirs)]
    assert dtypes[0] == dtypes[1]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    hidden, weights = torch.randn(2, 5, 40, sizes[0], device=DEVICE)
    lengths = torch.tensor([40, 7, 1, 33, 20], device=DEVICE)
    real = ~cuda.padding(lengths, hidden)
    results = []
    for block, call in ((ours, lambda x: ours(x, Rows(lengths))), (theirs, theirs)):
        leaf = hidden.clone().requires_grad_()
        y = call(leaf) * real  # both are causal: padding after a row's end has no effect
        (y * weights).sum().backward()
        gradients = {name: each.grad for name, each in block.named_parameters()}
        results.append({"scores": y, "hidden": leaf.grad, **gradients})
    values = [{name: each.detach().double().cpu() for name, each in one.items()} for one in results]
    assert_close(values[0], values[1], scores=1e-4, gradients=1e-3)
