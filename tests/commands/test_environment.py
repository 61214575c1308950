"""`recbole-sigma env` on machines that stand-ins make: no GPU, one with and without kernels, one with wrong results."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from recbole_sigma import cli, environment, ops
from recbole_sigma.commands import env
from recbole_sigma.ops import cuda, selective_scan_reference
from recbole_sigma.ops.cpu import compiler

Shown = Callable[..., tuple[dict[str, Any], dict[str, Any]]]  # the fixture `shown`
MISSING = "ModuleNotFoundError: No module named 'selective_scan_cuda'"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """What `recbole-sigma env` prints, and its checks by their names."""

    def read(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
        assert cli.main(["env", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        machine = json.loads(out) if arguments else yaml.safe_load(out)
        return machine, {check["what"]: check for check in machine["checks"]}

    return read


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpu(scan=function, missing=reason, convolution=reason)`: a GPU whose kernels are the given stand-ins.

    Tensors stay on the CPU; what the operations do with CUDA tensors is done with them.
    """

    def pretend(scan: Any = selective_scan_reference, missing: str | None = None, convolution: str | None = None):
        about = SimpleNamespace(name="NVIDIA Pretended", total_memory=139 * 2**30, major=9, minor=0)
        difference = env.difference

        def selective_scan(*tensors: Tensor, lengths: Tensor) -> Tensor:
            cuda.require_cuda_extension()
            return scan(*tensors, lengths=lengths)

        def measured(kernel: Any, reference: Any, inputs: list[Tensor], device: str) -> float:
            on_cuda = device == "cuda" and kernel is ops.selective_scan
            return difference(selective_scan if on_cuda else kernel, reference, inputs, "cpu")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12080, raising=False)
        monkeypatch.setattr(cuda, "cuda_extension_missing", lambda: missing)
        monkeypatch.setattr(cuda, "causal_conv1d_missing", lambda: convolution)
        monkeypatch.setattr(env, "difference", measured)

    return pretend


def test_without_a_gpu_the_reason_is_shown_and_the_cpu_works(monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    machine, checks = shown()
    assert machine["no_gpu"] == "torch 2.13.0+cpu is a CPU build" and machine["torch_cuda"] is None
    assert machine["versions"]["recbole"] == "1.2.0" and machine["gpus"] == []
    for name in ("scan on CPU", "convolution on CPU"):
        assert checks[name]["works"] is True and "numba, kernels kept in /" in checks[name]["says"]
        assert checks[name.replace("CPU", "CUDA")] | {"what": ""} == {
            "what": "", "works": None, "says": "no GPU that torch can see", "fix": None,
        }  # fmt: skip


def test_a_cuda_build_without_a_driver_gives_torchs_reason(monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver\n  on your system.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shown()[0]["no_gpu"] == "Found no NVIDIA driver on your system. (CUDA_VISIBLE_DEVICES is '')"


def test_a_gpu_whose_kernels_are_right_and_json_says_the_same(gpu: Callable[..., None], shown: Shown) -> None:
    gpu()
    machine, checks = shown()
    assert machine["gpus"] == [{"name": "NVIDIA Pretended", "memory_gib": 139.0, "capability": "9.0"}]
    assert (machine["driver_cuda"], machine["torch_cuda"], machine["no_gpu"]) == ("12.8", "12.8", None)
    assert checks["scan on CUDA"]["says"].startswith("mamba-ssm, within ")
    assert checks["convolution on CUDA"]["says"].startswith("causal-conv1d, within ")
    assert all(check["works"] and check["fix"] is None for check in checks.values())
    assert shown("--json")[0] == machine


def test_a_gpu_without_the_extension_says_why_and_gives_the_command(gpu: Callable[..., None], shown: Shown) -> None:
    gpu(missing=MISSING, convolution="ImportError: undefined symbol:\n  _ZN3c10")
    scan, convolution = (shown()[1][f"{name} on CUDA"] for name in ("scan", "convolution"))
    assert scan["works"] is False and MISSING in scan["says"]
    assert convolution["works"] is True and convolution["says"].startswith("torch, ")
    assert "(ImportError: undefined symbol: _ZN3c10)" in convolution["says"]
    for check in (scan, convolution):
        assert check["fix"].startswith(cuda.INSTALL) and check["fix"].endswith("sm_90: docs/cuda.md")
    for variable in ("CAUSAL_CONV1D_FORCE_BUILD=TRUE", "MAMBA_FORCE_BUILD=TRUE", "MAMBA_KEEP_CUDA_BUILD=TRUE"):
        assert variable in cuda.INSTALL


def wrong(value: float, gradient: float) -> Callable[..., Tensor]:
    """A scan whose values and whose last input's gradient are multiplied."""

    def scan(*tensors: Tensor, lengths: Tensor) -> Tensor:
        tensors[-1].register_hook(lambda right: right * gradient)
        return value * selective_scan_reference(*tensors, lengths=lengths)

    return scan


def for_another_chip(*tensors: Tensor, lengths: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image is available\n for execution on the device")


@pytest.mark.parametrize(
    "scan", [wrong(1.01, 1), wrong(float("nan"), 1), wrong(1, 0), wrong(1, float("nan")), for_another_chip]
)
def test_an_extension_that_does_not_compute_the_scan_is_found(
    gpu: Callable[..., None], shown: Shown, scan: Callable[..., Tensor]
) -> None:
    gpu(scan=scan)
    _, checks = shown()
    said = "no kernel image is available for execution" if scan is for_another_chip else "WRONG"
    assert checks["scan on CUDA"]["works"] is False and said in checks["scan on CUDA"]["says"]
    assert checks["scan on CUDA"]["fix"] and checks["convolution on CUDA"]["works"] is True


def test_a_missing_package_and_a_cache_that_cannot_be_written_are_shown(monkeypatch: Any, shown: Shown) -> None:
    def refused(function: Any) -> Any:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiler, "_SafeCache", refused)
    monkeypatch.setattr(env, "OPTIONAL", ("no-such-package",))
    machine, checks = shown()
    assert machine["versions"]["no-such-package"] is None
    assert "no-such-package" not in environment.versions(["no-such-package"])
    assert "NUMBA_CACHE_DIR" in checks["scan on CPU"]["says"]
