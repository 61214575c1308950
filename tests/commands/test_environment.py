"""`recbole-sigma env` on machines that stand-ins make: no GPU, one with and without kernels, one with wrong results."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_sigma import cli, environment, ops
from recbole_sigma.commands import env
from recbole_sigma.ops import cuda, selective_scan_reference
from recbole_sigma.ops.cpu import compiler

MISSING = "ModuleNotFoundError: No module named 'selective_scan_cuda'"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """What `recbole-sigma env` prints, by the name at the left; commands that fix something by `to fix NAME:`."""

    def read() -> dict[str, str]:
        assert cli.main(["env"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        rows, _, fixes = out.partition("\n\n")
        assert max(map(len, rows.splitlines())) <= 100
        found, name = {}, ""
        for line in rows.splitlines():
            label, _, text = line.partition("  ")
            name = label or name
            found[name] = f"{found.get(name, '')} {text.strip()}".strip()
        return found | dict(each.splitlines() for each in fixes.split("\n\n") if each)

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
        monkeypatch.setattr(ops, "active_backend", lambda device: f"the backend on {device}")
        monkeypatch.setattr(env, "difference", measured)

    return pretend


def test_without_a_gpu_the_reason_is_shown_and_the_cpu_works(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[[], dict[str, str]]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    facts = shown()
    assert "torch 2.13.0+cpu is a CPU build" in facts["GPU"] and "CPU" in facts["torch is built"]
    for name in ("scan on CPU", "convolution on CPU"):
        assert facts[name].startswith("works: numba ") and "kernels kept in /" in facts[name]
        assert facts[name.replace("CPU", "CUDA")].startswith("not tried: no GPU")
    assert facts["recbole"] == "1.2.0" and not [name for name in facts if name.startswith("to fix")]


def test_a_cuda_build_without_a_driver_gives_torchs_reason(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[[], dict[str, str]]
):
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver\n  on your system.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "Found no NVIDIA driver on your system. (CUDA_VISIBLE_DEVICES is '')" in shown()["GPU"]


def test_a_gpu_whose_kernels_are_right(gpu: Callable[..., None], shown: Callable[[], dict[str, str]]):
    gpu()
    facts = shown()
    assert facts["cuda:0"] == "NVIDIA Pretended, 139.0 GiB, compute capability 9.0"
    assert "12.8" in facts["driver"] and facts["torch is built"] == "for CUDA 12.8"
    assert facts["scan on CUDA"].startswith("works: the backend on cuda, within ")
    assert facts["convolution on CUDA"].startswith("works: causal-conv1d, within ")
    assert not [name for name in facts if name.startswith("to fix")]


def test_a_gpu_without_the_extension_says_why_and_gives_the_command(
    gpu: Callable[..., None], shown: Callable[[], dict[str, str]]
):
    gpu(missing=MISSING, convolution="ImportError: undefined symbol:\n  _ZN3c10")
    facts = shown()
    assert facts["scan on CUDA"].startswith("DOES NOT WORK: ") and MISSING in facts["scan on CUDA"]
    assert facts["convolution on CUDA"].startswith("works: torch, ")
    assert "(ImportError: undefined symbol: _ZN3c10)" in facts["convolution on CUDA"]
    for name in ("to fix scan on CUDA:", "to fix convolution on CUDA:"):
        assert facts[name].startswith(cuda.INSTALL) and facts[name].endswith("sm_90: docs/cuda.md")
    for variable in ("CAUSAL_CONV1D_FORCE_BUILD=TRUE", "MAMBA_FORCE_BUILD=TRUE", "MAMBA_KEEP_CUDA_BUILD=TRUE"):
        assert variable in cuda.INSTALL


def wrong_results(*tensors: Tensor, lengths: Tensor) -> Tensor:
    return 1.01 * selective_scan_reference(*tensors, lengths=lengths)


def nan_results(*tensors: Tensor, lengths: Tensor) -> Tensor:
    return float("nan") * selective_scan_reference(*tensors, lengths=lengths)


def wrong_gradients(*tensors: Tensor, lengths: Tensor) -> Tensor:
    tensors[-1].register_hook(torch.zeros_like)
    return selective_scan_reference(*tensors, lengths=lengths)


def nan_gradients(*tensors: Tensor, lengths: Tensor) -> Tensor:
    tensors[-1].register_hook(lambda gradient: gradient * float("nan"))
    return selective_scan_reference(*tensors, lengths=lengths)


def for_another_chip(*tensors: Tensor, lengths: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image is available\n for execution on the device")


@pytest.mark.parametrize("scan", [wrong_results, nan_results, wrong_gradients, nan_gradients, for_another_chip])
def test_an_extension_that_does_not_compute_the_scan_is_found(
    gpu: Callable[..., None], shown: Callable[[], dict[str, str]], scan: Callable[..., Tensor]
):
    gpu(scan=scan)
    facts = shown()
    wrong = "no kernel image is available for execution" if scan is for_another_chip else "WRONG"
    assert facts["scan on CUDA"].startswith("DOES NOT WORK: ") and wrong in facts["scan on CUDA"]
    assert "to fix scan on CUDA:" in facts and facts["convolution on CUDA"].startswith("works")


def test_json_says_the_same(gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    gpu(missing=MISSING)
    assert cli.main(["env", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["gpus"] == [{"name": "NVIDIA Pretended", "memory_gib": 139.0, "capability": "9.0"}]
    assert machine["versions"]["recbole"] == "1.2.0" and machine["no_gpu"] is None
    checks = {check["what"]: check for check in machine["checks"]}
    assert [check["works"] for check in checks.values()] == [True, True, False, True]
    assert MISSING in checks["scan on CUDA"]["says"] and checks["scan on CUDA"]["fix"].startswith(cuda.INSTALL)
    assert checks["scan on CPU"]["fix"] is None


def test_a_package_that_is_missing_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[[], dict[str, str]]
):
    monkeypatch.setattr(env, "OPTIONAL", ("no-such-package",))
    assert shown()["no-such-package"] == "not installed"
    assert env.inspect_machine()["versions"]["no-such-package"] is None
    assert "no-such-package" not in environment.versions(["no-such-package"])


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, shown: Callable[[], dict[str, str]]):
    def refused(function: Any) -> Any:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiler, "_SafeCache", refused)
    assert "NUMBA_CACHE_DIR" in shown()["scan on CPU"]
