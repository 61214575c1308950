"""What the scan, the convolution, the GRU and the averages have in common on CPU."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import recbole_sigma.ops as ops
from recbole_sigma.ops.cpu.arrays import RowLayout
from recbole_sigma.ops.cpu.gru import recurrence_cpu
from recbole_sigma.ops.rows import on_padded_rows
from tests.ops.operations import OPERATIONS, assert_all_close, gru_arguments, outputs_and_gradients, threads

each_operation = pytest.mark.parametrize("name", OPERATIONS)
LENGTHS = [4, 9, 0, 1, 9, 6, 3]
REAL = (torch.arange(9) < torch.tensor(LENGTHS)[:, None])[..., None]


@pytest.mark.parametrize("name", [*OPERATIONS, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_depends_neither_on_its_neighbours_nor_on_its_padding(name: str, dtype: torch.dtype):
    reference = OPERATIONS["selective_scan"]._replace(function=ops.selective_scan_reference)
    function, arguments, per_row = {**OPERATIONS, "reference": reference}[name]
    tensors = arguments(7, 9, 16, 8, dtype)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    together = outputs_and_gradients(function, tensors, lengths=lengths)
    garbage = 1e3 if name == "gru" else float("nan")  # the GRU projects the padding and needs finite numbers there
    spoilt = {key: x.where(REAL, garbage) if key in per_row else x for key, x in tensors.items()}
    assert_all_close(outputs_and_gradients(function, spoilt, lengths=lengths), together, 0)
    for row, end in enumerate(LENGTHS):
        assert not together["y"][row, end:].any()
        assert not any(together[key][row, end:].any() for key in per_row)
        own = {key: x[row : row + 1, :end] if key in per_row else x for key, x in tensors.items()}
        bound = 1e-6 if name in ("gru", "reference") else 0  # BLAS may round by the batch's size
        torch.testing.assert_close(together["y"][row, :end], function(**own)[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("shape", [(5, 7, 3, 4), (1, 1, 1, 1), (3, 90, 64, 2)])
def test_averages_are_those_of_a_loop_over_steps(shape: Any):
    def by_steps(values: Any, log_decay: Any, weight: Any) -> Any:
        state, sums = torch.zeros(len(values), *weight.shape, dtype=values.dtype), []
        for value in values.unbind(1):
            state = log_decay.exp() * state + value[..., None]
            sums.append((weight * state).sum(-1))
        return torch.stack(sums, 1)

    function, arguments, _ = OPERATIONS["moving_averages"]
    tensors = arguments(*shape, torch.float64)
    assert_all_close(outputs_and_gradients(function, tensors), outputs_and_gradients(by_steps, tensors), 1e-12)


@each_operation
@pytest.mark.parametrize("padded", [False, True])
def test_flat_rows_have_the_results_and_gradients_of_padded_rows(name: str, padded: bool):
    function, arguments, per_row = OPERATIONS[name]
    tensors = arguments(7, 9, 16, 8, torch.float64)
    lengths = torch.tensor(LENGTHS)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    real = REAL[..., 0]

    def flat_rows(**flat: Any) -> Any:
        if not padded:
            return function(**flat, offsets=offsets)
        others = {key: x for key, x in flat.items() if key not in per_row}  # as on CUDA, whose kernels need padding

        def on_padding(*rows: Any) -> Any:
            return function(**dict(zip(per_row, rows, strict=False)), **others, lengths=rows[-1])

        return on_padded_rows(on_padding, [flat[key] for key in per_row], offsets, None)

    expected = outputs_and_gradients(lambda **x: function(**x, lengths=lengths)[real], tensors)
    flat = {key: x[real] if key in per_row else x for key, x in tensors.items()}
    results = outputs_and_gradients(flat_rows, flat)
    for key, value in results.items():
        same = expected[key][real] if key in per_row else expected[key]
        torch.testing.assert_close(value, same, rtol=1e-12, atol=1e-12)


@each_operation
@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 4], "ascend from 0 to 5"), ([1, 5], "ascend from 0 to 5"), ([0, 4, 3, 5], "ascend"), ([], "shape"),
        ([0.0, 5.0], "integers"),
    ],
)  # fmt: skip
def test_wrong_offsets_are_refused(name: str, offsets: list[Any], words: str):
    function, arguments, per_row = OPERATIONS[name]
    flat = {key: x[0] if key in per_row else x for key, x in arguments(1, 5, 16, 8).items()}
    with pytest.raises((TypeError, ValueError), match=f"offsets.*{words}"):
        function(**flat, offsets=torch.tensor(offsets) if offsets else torch.tensor([], dtype=torch.int64).view(0))


def test_a_row_of_the_gru_is_bit_identical_alone_and_in_a_batch():
    tensors = gru_arguments(7, 9, 8, 16)
    gates_x = torch.nn.functional.linear(tensors["x"], tensors["weight_ih"], tensors["bias_ih"])
    weights = tensors["weight_hh"], tensors["bias_hh"]
    rows = RowLayout.of(gates_x.shape, torch.tensor(LENGTHS), None)
    together = recurrence_cpu(gates_x.clone().flatten(0, 1), *weights, rows).view(7, 9, 16)
    for row, end in enumerate(LENGTHS):
        alone = recurrence_cpu(gates_x[row, :end].clone(), *weights, RowLayout.of((1, end), None, None))
        assert torch.equal(together[row, :end], alone)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("selective_scan", (40, 50, 64, 32)), ("selective_scan", (1, 5000, 128, 8)), ("causal_conv1d", (50, 60, 96, 4)),
        ("recurrence", (203, 30, 192, 64)), ("moving_averages", (400, 50, 64, 4)),
    ],
)  # fmt: skip
def test_results_are_bit_identical_for_any_number_of_threads(name: str, shape: Any):
    if name == "recurrence":  # of the GRU: how torch's own products round is not ours to promise
        gates, _, weight, _, bias = gru_arguments(*shape).values()
        tensors = {"gates": gates, "bias": bias}
        lengths = 1 + torch.arange(shape[0]) * 7 % shape[1]

        def function(gates: Any, bias: Any) -> Any:
            rows = RowLayout.of(gates.shape, lengths, None)
            return recurrence_cpu(gates.clone().flatten(0, 1), weight, bias, rows)
    else:
        function, tensors = OPERATIONS[name].function, OPERATIONS[name].arguments(*shape)
    results = []
    for count in (1, 2, 3, 2):
        with threads(count):
            results.append(outputs_and_gradients(function, tensors))
    assert all(torch.equal(result[key], results[0][key]) for result in results for key in result)


@each_operation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(name: str, dtype: torch.dtype):
    function, arguments, per_row = OPERATIONS[name]
    half = {key: x.to(dtype) if key in per_row else x for key, x in arguments(2, 9, 8, 8).items()}
    y = function(**half)
    assert y.dtype == dtype
    exact = function(**{key: x.to(dtype).double() if name == "gru" else x.float() for key, x in half.items()})
    bound = 0.02 if name == "gru" else 0  # the projection is rounded
    torch.testing.assert_close(y.double(), exact.to(dtype).double(), rtol=bound, atol=bound)


@each_operation
def test_gradients_are_computed_only_where_they_are_wanted(name: str):
    function, arguments, _ = OPERATIONS[name]
    expected = outputs_and_gradients(function, arguments(3, 5, 6, 4, torch.float64))
    for only in arguments(3, 5, 6, 4):
        tensors = arguments(3, 5, 6, 4, torch.float64)
        tensors[only].requires_grad_()
        y = function(**tensors)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double())
        assert [key for key, x in tensors.items() if x.grad is not None] == [only]
        torch.testing.assert_close(tensors[only].grad, expected[only])


@each_operation
def test_slices_and_other_layouts_are_read_as_they_are(name: str):
    function, arguments, per_row = OPERATIONS[name]
    tensors = arguments(3, 6, 16, 8)
    expected = function(**tensors)
    strided = {key: x.transpose(0, -1).contiguous().transpose(0, -1) for key, x in tensors.items()}
    torch.testing.assert_close(function(**strided), expected, rtol=1e-6, atol=1e-6)
    wide = {key: torch.cat([x + 1, x, x], -1) if key in per_row else x for key, x in tensors.items()}
    leaves = {key: x.requires_grad_() for key, x in wide.items()}
    sliced = {key: x.split(x.shape[-1] // 3, -1)[1] if key in per_row else x for key, x in leaves.items()}
    assert not any(sliced[key].is_contiguous() for key in per_row)
    y = function(**sliced)
    assert torch.equal(y, expected)
    expanded = torch.autograd.grad(y.sum(), list(leaves.values()), retain_graph=True)  # its gradient is one number
    written_out = torch.autograd.grad((y * torch.ones_like(y)).sum(), list(leaves.values()))
    assert all(map(torch.equal, expanded, written_out))


FITTING = {
    "selective_scan": (2, 3, 4, 8),
    "causal_conv1d": (2, 3, 4, 2),
    "gru": (2, 3, 5, 6),
    "moving_averages": (2, 3, 4, 5),
}


WRONG = {
    "selective_scan": [
        ({"u": torch.zeros(2, 3)}, ["u", "(B, L, E)", "A", "(E, N)", "(2, 3)", "(4, 8)"]),
        ({"delta": torch.zeros(2, 3, 5)}, ["delta", "(2, 3, 4)", "(2, 3, 5)"]),
        ({"B": torch.zeros(2, 3, 4)}, ["B", "(2, 3, 8)", "(2, 3, 4)"]),
        ({"D": torch.zeros(5)}, ["D", "(4,)", "(5,)"]),
        ({"u": torch.zeros(2, 3, 4).long()}, ["u", "floating-point", "torch.int64"]),
        ({"z": torch.zeros(2, 3, 4).cfloat()}, ["z", "floating-point", "torch.complex64"]),
        ({"C": torch.zeros(2, 3, 8, device="meta")}, ["C is on meta", "on cpu"]),
    ],
    "causal_conv1d": [
        ({"activation": "relu"}, ["activation", '"silu"', "None", "'relu'"]),
        ({"x": torch.zeros(2, 3)}, ["x", "(B, L, E)", "weight", "(E, K > 0)", "(2, 3)", "(4, 2)"]),
        ({"weight": torch.zeros(5, 2)}, ["weight", "(4, 2)", "(5, 2)"]),
        ({"bias": torch.zeros(4).int()}, ["bias", "floating-point", "torch.int32"]),
    ],
    "gru": [
        ({"x": torch.zeros(3, 5)}, ["x", "(B, L, I)", "(3, 5)"]),
        ({"weight_hh": torch.zeros(18)}, ["weight_hh", "(3D, D > 0)", "(18,)"]),
        ({"weight_hh": torch.zeros(12, 6)}, ["weight_hh", "(18, 6)", "(12, 6)"]),
        ({"weight_ih": torch.zeros(18, 4)}, ["weight_ih", "(18, 5)", "(18, 4)"]),
        ({"bias_ih": torch.zeros(6)}, ["bias_ih", "(18,)", "(6,)"]),
        ({"bias_hh": torch.zeros(18, 1)}, ["bias_hh", "(18,)", "(18, 1)"]),
        ({"bias_hh": torch.zeros(18).long()}, ["bias_hh", "floating-point", "torch.int64"]),
        ({"weight_ih": torch.zeros(18, 5, device="meta")}, ["weight_ih is on meta", "on cpu"]),
    ],
    "moving_averages": [
        ({"values": torch.zeros(2, 3)}, ["values", "(B, L, D)", "log_decay", "(D, N)", "(2, 3)", "(4, 5)"]),
        ({"weight": torch.zeros(5, 4)}, ["weight", "(4, 5)", "(5, 4)"]),
        ({"values": torch.zeros(2, 3, 4).long()}, ["values", "floating-point", "torch.int64"]),
    ],
}
WRONG_LENGTHS = [
    ({"lengths": torch.tensor([3, 4])}, ["lengths", "0 .. 3", "3 .. 4"]),
    ({"lengths": torch.tensor([-1, 2])}, ["lengths", "0 .. 3", "-1 .. 2"]),
    ({"lengths": torch.tensor([1, 2, 3])}, ["lengths", "(2,)", "(3,)"]),
    ({"lengths": torch.tensor([1.0, 2.0])}, ["lengths", "integers", "torch.float32"]),
]


@pytest.mark.parametrize(
    ("name", "change", "words"), [(name, *case) for name in OPERATIONS for case in WRONG[name] + WRONG_LENGTHS]
)
def test_a_wrong_argument_is_named_with_what_would_be_right(name: str, change: Any, words: list[str]):
    function, arguments, _ = OPERATIONS[name]
    kind = TypeError if {"floating-point", "integers"} & {*words} else ValueError
    with pytest.raises(kind) as caught:
        function(**{**arguments(*FITTING[name]), **change})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@each_operation
def test_other_devices_are_refused_by_name(name: str):
    function, arguments, _ = OPERATIONS[name]
    with pytest.raises(ValueError, match=f"{name} runs on cpu and cuda, not on meta"):
        function(**{key: x.to("meta") for key, x in arguments(2, 3, 4, 8).items()})


def test_ops_import_torch_and_kernel_libraries_only():
    allowed = {"torch", "numpy", "numba", "recbole_sigma"} | set(sys.stdlib_module_names)
    for path in Path(ops.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in allowed for name in names), path
            assert all(name.startswith("recbole_sigma.ops") for name in names if name.startswith("recbole")), path


def test_importing_ops_does_not_import_numba():
    check = "import sys, recbole_sigma.ops, recbole_sigma.ops.gru; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=120).returncode == 0
