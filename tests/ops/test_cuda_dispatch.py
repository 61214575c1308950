"""What mamba-ssm and causal-conv1d get on CUDA, and what happens without them; tested without a GPU."""

from types import SimpleNamespace

import pytest
import torch

import recbole_sigma.ops as ops
from recbole_sigma.ops import causal_conv1d, cuda, scan, selective_scan_reference
from tests.ops.operations import conv_arguments, scan_arguments

without_extension = pytest.mark.skipif(
    ops.cuda_extension_missing() is None, reason="mamba-ssm's extension is installed"
)


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
    tensors = scan_arguments(3, 5, 4, 8)
    lengths = torch.tensor([5, 0, 2])
    got = cuda.selective_scan_cuda(*tensors.values(), True, lengths)
    torch.testing.assert_close(got, selective_scan_reference(**tensors, lengths=lengths))
    with pytest.raises(TypeError, match="selective_scan_reference"):
        cuda.selective_scan_cuda(*(x.double() for x in tensors.values()), True, lengths)
    with pytest.raises(ValueError, match="at most 256 states, not 257"):
        cuda.selective_scan_cuda(*scan_arguments(3, 5, 4, 257).values(), True, lengths)
    nothing = cuda.selective_scan_cuda(*scan_arguments(3, 0, 4, 8).values(), True, torch.tensor([0, 0, 0]))
    assert nothing.shape == (3, 0, 4)


def test_an_extension_without_the_module_that_calls_it_is_missing(monkeypatch):
    def without_dependencies(name):
        if name != "selective_scan_cuda":
            raise ModuleNotFoundError("No module named 'einops'")

    monkeypatch.setattr(cuda, "import_module", without_dependencies)
    assert cuda.cuda_extension_missing.__wrapped__() == "ModuleNotFoundError: No module named 'einops'"
    monkeypatch.setattr(cuda, "import_module", lambda name: None)
    assert cuda.cuda_extension_missing.__wrapped__() is None


@pytest.mark.parametrize(("missing", "name"), [(None, "causal-conv1d 1.5"), ("not installed", "torch's convolution")])
def test_the_backend_on_cuda_names_what_convolves(monkeypatch, missing, name):
    monkeypatch.setattr(scan, "require_cuda_extension", lambda: None)
    monkeypatch.setattr(scan, "causal_conv1d_missing", lambda: missing)
    monkeypatch.setattr(scan, "version", {"mamba-ssm": "2.2", "causal-conv1d": "1.5"}.__getitem__)
    assert ops.active_backend("cuda") == f"mamba-ssm 2.2, {name}"


@pytest.mark.parametrize(
    ("channels", "width", "missing", "takes"),
    [
        (16, 4, None, True), (16, 2, None, True), (16, 1, None, False), (16, 5, None, False), (20, 4, None, False),
        (16, 4, "it is not installed", False),
    ],
)  # fmt: skip
def test_causal_conv1d_gets_what_it_takes_in_its_own_layout_and_torch_the_rest(
    monkeypatch, channels, width, missing, takes
):
    def stand_in(x, weight, bias, activation):
        # what its C++ code checks where channels lie next to each other
        assert x.stride(1) == 1 and x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
        seen.append(tuple(x.shape))
        return cuda.causal_conv1d_torch(x.transpose(1, 2), weight, bias, activation).transpose(1, 2)

    seen = []
    monkeypatch.setattr(cuda, "causal_conv1d_missing", lambda: missing)
    monkeypatch.setattr(cuda, "import_module", lambda name: SimpleNamespace(causal_conv1d_fn=stand_in))
    tensors = conv_arguments(3, 7, channels, width)
    lengths = torch.tensor([7, 0, 3])
    wide = torch.cat([tensors["x"], tensors["x"] + 1], -1)
    got = cuda.causal_conv1d_cuda(**{**tensors, "x": wide.chunk(2, -1)[0]}, activation="silu", lengths=lengths)
    torch.testing.assert_close(got, causal_conv1d(**tensors, lengths=lengths))
    assert seen == [(3, channels, 7)] * takes
    got = cuda.causal_conv1d_cuda(**{**tensors, "x": wide[..., 3 : channels + 3]}, activation=None, lengths=None)
    assert got.shape == tensors["x"].shape and len(seen) == takes  # not aligned: torch's
