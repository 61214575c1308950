"""`recbole-sigma env` on machines that stand-ins make: no GPU, one with and without kernels, and one that lies."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_sigma import cli, environment
from recbole_sigma.ops import cuda, selective_scan_reference
from recbole_sigma.ops.cpu import compiler

MISSING = "ModuleNotFoundError: No module named 'selective_scan_cuda'"


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `recbole-sigma env` prints."""
    assert cli.main(["env", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def facts(text: str) -> dict[str, str]:
    """What each line says, by its name; commands that mend something by `mend NAME`."""
    found, name = {}, ""
    for line in text.splitlines():
        label, _, fact = line.partition("  ")
        name, key = (label, label) if label else (name, f"mend {name}")
        found[key] = fact.strip()
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpu(scan=function, missing=reason, convolution=reason)`: a GPU whose kernels are the given stand-ins.

    Tensors stay on the CPU; what the operations do with CUDA tensors is done with them.
    """

    def pretend(scan: Any = selective_scan_reference, missing: str | None = None, convolution: str | None = None):
        about = SimpleNamespace(name="NVIDIA Pretended", total_memory=139 * 2**30, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12080, raising=False)
        monkeypatch.setattr(cuda, "cuda_extension_missing", lambda: missing)
        monkeypatch.setattr(cuda, "causal_conv1d_missing", lambda: convolution)
        monkeypatch.setattr(environment, "active_backend", lambda device: f"the backend on {device}")
        monkeypatch.setattr(environment, "_difference", on_cpu(environment._difference, scan))

    return pretend


def on_cpu(difference: Callable[..., float], scan: Any) -> Callable[..., float]:
    """`_difference` with a GPU's kernels in the place of the CPU's; selective_scan is refused without the extension."""

    def selective_scan(*tensors: Tensor, lengths: Tensor) -> Tensor:
        cuda.require_cuda_extension()
        return scan(*tensors, lengths=lengths)

    def measured(kernel: Any, reference: Any, given: list[Tensor], on: str) -> float:
        on_cuda = on == "cuda" and kernel is environment.selective_scan
        return difference(selective_scan if on_cuda else kernel, reference, given, "cpu")

    return measured


def test_without_a_gpu_the_reason_is_told_and_the_cpu_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    told = facts(shown(capsys))
    assert told["GPU"] == "no GPU that torch can see: torch 2.13.0+cpu is a CPU build"
    assert told["torch is built"] == "for the CPU alone"
    for name in ("scan on CPU", "convolution on CPU"):
        assert told[name].startswith("works: numba ") and "kernels kept in /" in told[name]
        assert f"mend {name}" not in told
    assert told["scan on CUDA"] == "not tried: no GPU that torch can see"
    assert told["recbole"] == "1.2.0"


def test_a_cuda_build_without_a_driver_gives_torchs_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver\n  on your system.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = "no GPU that torch can see: Found no NVIDIA driver on your system. (CUDA_VISIBLE_DEVICES is '')"
    assert facts(shown(capsys))["GPU"] == reason


def test_a_gpu_whose_kernels_answer_rightly(gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    gpu()
    told = facts(shown(capsys))
    assert told["cuda:0"] == "NVIDIA Pretended, 139.0 GiB, compute capability 9.0"
    assert (told["driver"], told["torch is built"]) == ("takes CUDA up to 12.8", "for CUDA 12.8")
    assert told["scan on CUDA"].startswith("works: the backend on cuda, within ")
    assert told["convolution on CUDA"].startswith("works: causal-conv1d, within ")
    assert not [name for name in told if name.startswith("mend")]


def test_a_gpu_without_the_extension_says_why_and_gives_the_command(
    gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    gpu(missing=MISSING, convolution="ImportError: undefined symbol:\n  _ZN3c10")
    told = facts(shown(capsys))
    assert told["scan on CUDA"] == f"DOES NOT WORK: cannot be loaded: {MISSING}"
    assert told["convolution on CUDA"].startswith(
        "works: torch, since causal-conv1d cannot be loaded (ImportError: undefined symbol: _ZN3c10)"
    )
    for name in ("scan on CUDA", "convolution on CUDA"):
        command = told[f"mend {name}"]
        assert command.startswith(f"mend it: {cuda.INSTALL}") and command.endswith(
            "this one alone, sm_90: docs/cuda.md"
        )
    for variable in ("CAUSAL_CONV1D_FORCE_BUILD=TRUE", "MAMBA_FORCE_BUILD=TRUE", "MAMBA_KEEP_CUDA_BUILD=TRUE"):
        assert variable in cuda.INSTALL


@pytest.mark.parametrize("scale", [1.01, float("nan")])
def test_an_extension_that_answers_wrongly_is_told(
    gpu: Callable[..., None], capsys: pytest.CaptureFixture[str], scale: float
):
    gpu(scan=lambda *tensors, lengths: scale * selective_scan_reference(*tensors, lengths=lengths))
    told = facts(shown(capsys))
    assert told["scan on CUDA"].startswith("DOES NOT WORK: the backend on cuda answers WRONGLY: off by ")
    assert "mend scan on CUDA" in told and told["convolution on CUDA"].startswith("works")


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_an_extension_with_wrong_gradients_is_told(
    gpu: Callable[..., None], capsys: pytest.CaptureFixture[str], factor: float
):
    def scan(*tensors: Tensor, lengths: Tensor) -> Tensor:
        bias = tensors[-1]
        bias.register_hook(lambda gradient: factor * gradient)
        return selective_scan_reference(*tensors, lengths=lengths)

    gpu(scan=scan)
    assert "answers WRONGLY" in facts(shown(capsys))["scan on CUDA"]


def test_an_extension_for_another_chip_is_told(gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    def scan(*tensors: Tensor, lengths: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\n for execution on the device")

    gpu(scan=scan)
    told = facts(shown(capsys))["scan on CUDA"]
    assert told == "DOES NOT WORK: RuntimeError: CUDA error: no kernel image is available for execution on the device"


def test_json_says_the_same(gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    gpu(missing=MISSING)
    found = json.loads(shown(capsys, "--json"))
    assert found["gpus"] == [{"name": "NVIDIA Pretended", "memory_gib": 139.0, "capability": "9.0"}]
    assert found["versions"]["recbole"] == "1.2.0" and found["no_gpu"] is None
    checks = {check["what"]: check for check in found["checks"]}
    assert [check["works"] for check in checks.values()] == [True, True, False, True]
    assert checks["scan on CUDA"]["says"] == f"cannot be loaded: {MISSING}"
    assert checks["scan on CUDA"]["mend"].startswith(cuda.INSTALL)
    assert checks["scan on CPU"]["mend"] is None


def test_a_package_that_is_not_there_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(environment, "_TOOLS", ("no-such-package",))
    text = shown(capsys)
    assert facts(text)["no-such-package"] == "not installed"
    assert json.loads(shown(capsys, "--json"))["versions"]["no-such-package"] is None
    assert "no-such-package" not in environment.versions(["no-such-package"])


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def refused(function: Any) -> Any:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiler, "_SafeCache", refused)
    assert "nowhere to keep kernels (NUMBA_CACHE_DIR): each start compiles" in facts(shown(capsys))["scan on CPU"]


def test_a_wrong_argument_ends_with_2_and_one_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["env", "--jsn"]) == 2
    assert capsys.readouterr() == ("", "recbole-sigma: error: env takes --json, got '--jsn'\n")
