"""What the operations refuse, in their words, and what they hand to mamba-ssm on CUDA."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_scan import arguments, outputs_and_gradients, weights_for

import recbole_sigma.ops as ops
from recbole_sigma.ops import cuda, scan, selective_scan, selective_scan_reference

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or ops.cuda_extension_missing() is not None,
    reason="needs a GPU and mamba-ssm's extension",
)
without_extension = pytest.mark.skipif(
    ops.cuda_extension_missing() is None, reason="mamba-ssm's extension is installed"
)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"u": torch.zeros(2, 3)}, ValueError, "u must be (B, L, E) and A (E, N), not (2, 3) and (4, 8)"),
        ({"delta": torch.zeros(2, 3, 5)}, ValueError, "delta must have shape (2, 3, 4), not (2, 3, 5)"),
        ({"B": torch.zeros(2, 3, 4)}, ValueError, "B must have shape (2, 3, 8), not (2, 3, 4)"),
        ({"D": torch.zeros(5)}, ValueError, "D must have shape (4,), not (5,)"),
        (
            {"u": torch.zeros(2, 3, 4, dtype=torch.long)},
            TypeError,
            "u must be a floating-point tensor, not torch.int64",
        ),
        (
            {"z": torch.zeros(2, 3, 4, dtype=torch.cfloat)},
            TypeError,
            "z must be a floating-point tensor, not torch.complex64",
        ),
        ({"C": torch.zeros(2, 3, 8, device="meta")}, ValueError, "C is on meta, the first argument on cpu"),
        ({"lengths": torch.tensor([3, 4])}, ValueError, "lengths must lie in 0 .. 3, not in 3 .. 4"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, "lengths must lie in 0 .. 3, not in -1 .. 2"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, "lengths must have shape (2,), not (3,)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths must be integers, not torch.float32"),
    ],
)
def test_a_wrong_argument_is_named_with_what_would_be_right(change, error, text):
    with pytest.raises(error) as caught:
        selective_scan(**{**arguments(2, 3, 4, 8), **change})
    assert str(caught.value) == text


def test_other_devices_are_refused_by_name():
    tensors = {name: x.to("meta") for name, x in arguments(2, 3, 4, 8).items()}
    with pytest.raises(ValueError, match="selective_scan runs on cpu and cuda, not on meta"):
        selective_scan(**tensors)


def test_the_active_backend_on_cpu_is_numba():
    assert ops.active_backend("cpu").startswith("numba ")


@without_extension
def test_cuda_without_the_extension_says_how_to_install_it():
    for attempt in (lambda: ops.active_backend("cuda"), lambda: cuda.selective_scan_cuda(*range(10))):
        with pytest.raises(ops.CudaExtensionError) as caught:
            attempt()
        assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install" in str(caught.value)
        assert "selective_scan_cuda" in str(caught.value)


def test_mamba_ssm_gets_its_own_layout_and_padding_is_masked(monkeypatch):
    def stand_in(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
        wide = (x.transpose(1, 2).float() for x in (u, delta))
        B, C, z = (x.transpose(1, 2).float() for x in (B, C, z))
        return selective_scan_reference(*wide, A, B, C, D, z, delta_bias, delta_softplus).transpose(1, 2).to(u.dtype)

    module = SimpleNamespace(selective_scan_fn=stand_in)
    monkeypatch.setattr(cuda, "require_cuda_extension", lambda: None)
    monkeypatch.setattr(cuda, "import_module", lambda name: {"mamba_ssm.ops.selective_scan_interface": module}[name])
    tensors = arguments(3, 5, 4, 8)
    lengths = torch.tensor([5, 0, 2])
    got = cuda.selective_scan_cuda(*tensors.values(), True, lengths)
    torch.testing.assert_close(got, selective_scan_reference(**tensors, lengths=lengths))
    with pytest.raises(TypeError, match="selective_scan_reference"):
        cuda.selective_scan_cuda(*(x.double() for x in tensors.values()), True, lengths)
    with pytest.raises(ValueError, match="at most 256 states, not 257"):
        cuda.selective_scan_cuda(*arguments(3, 5, 4, 257).values(), True, lengths)
    nothing = cuda.selective_scan_cuda(*arguments(3, 0, 4, 8).values(), True, torch.tensor([0, 0, 0]))
    assert nothing.shape == (3, 0, 4)


def test_an_extension_without_the_module_that_calls_it_is_missing(monkeypatch):
    def without_dependencies(name):
        if name != "selective_scan_cuda":
            raise ModuleNotFoundError("No module named 'einops'")

    monkeypatch.setattr(cuda, "import_module", without_dependencies)
    assert cuda.cuda_extension_missing.__wrapped__() == "ModuleNotFoundError: No module named 'einops'"
    monkeypatch.setattr(cuda, "import_module", lambda name: None)
    assert cuda.cuda_extension_missing.__wrapped__() is None


@pytest.mark.parametrize(("missing", "name"), [(None, "causal-conv1d 1.5"), ("not there", "torch's convolution")])
def test_the_backend_on_cuda_names_what_convolves(monkeypatch, missing, name):
    monkeypatch.setattr(scan, "require_cuda_extension", lambda: None)
    monkeypatch.setattr(scan, "causal_conv1d_missing", lambda: missing)
    monkeypatch.setattr(scan, "version", {"mamba-ssm": "2.2", "causal-conv1d": "1.5"}.__getitem__)
    assert ops.active_backend("cuda") == f"mamba-ssm 2.2, {name}"


@needs_cuda
def test_cuda_gives_what_the_cpu_gives():
    tensors = arguments(5, 33, 64, 16)
    lengths = torch.tensor([33, 0, 1, 20, 32])
    expected = outputs_and_gradients(selective_scan, tensors, weights_for(tensors), lengths=lengths)
    on_cuda = {name: x.cuda() for name, x in tensors.items()}
    got = outputs_and_gradients(selective_scan, on_cuda, weights_for(tensors).cuda(), lengths=lengths.cuda())
    for name, value in expected.items():
        torch.testing.assert_close(got[name].cpu(), value, rtol=1e-4, atol=1e-4)


def test_ops_import_torch_and_kernel_libraries_only():
    allowed = {"torch", "numpy", "numba", "recbole_sigma"} | set(sys.stdlib_module_names)
    for path in Path(ops.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in allowed for name in names), path
            assert all(name.startswith("recbole_sigma.ops") for name in names if name.startswith("recbole")), path


def test_importing_ops_does_not_import_numba():
    check = "import sys, recbole_sigma.ops; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=120).returncode == 0
