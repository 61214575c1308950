"""`recbole-sigma env`: what a run would find on this machine, and whether its kernels answer.

Each kernel is called on a tensor of a few numbers and compared with what it must give: that it can be imported says
little of an extension that was compiled for another torch or another GPU.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_sigma.ops import active_backend, causal_conv1d, cuda, selective_scan, selective_scan_reference

# What decides the numbers of a run, and what else the commands use.
PACKAGES = ("recbole-sigma", "recbole", "torch", "numpy", "pandas", "numba", "mamba-ssm", "causal-conv1d")
_TOOLS = ("ray", "hyperopt")
BOUND = 1e-3  # of a difference, as a share of the largest value: float32, and kernels with fast-math
# What a kernel raises that is missing, or was compiled for another torch, Python or GPU.
_FAILS = (*cuda.LOADING_FAILS, TypeError, ValueError, NotImplementedError)
_GUIDE = "docs/cuda.md"


@dataclass(frozen=True)
class Check:
    """Whether one kernel works. `works` is None where there was nothing to try; `mend` is a command, if one helps."""

    what: str
    works: bool | None
    says: str
    mend: str | None = None


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """As result.json has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {_cpu_name()}, {os.cpu_count()} cores"


def environment() -> dict[str, Any]:
    """All that `env` tells, as plain values."""
    found = versions((*PACKAGES, *_TOOLS))
    reason = no_gpu()
    return {
        "platform": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": found["python"], **{name: found.get(name) for name in (*PACKAGES, *_TOOLS)}},
        "torch_cuda": torch.version.cuda,
        "driver_cuda": None if reason else _driver(),
        "no_gpu": reason,
        "gpus": [] if reason else [_gpu(number) for number in range(torch.cuda.device_count())],
        "checks": [asdict(check) for check in _checks(reason)],
    }


def as_text(found: dict[str, Any]) -> str:
    """The same to be read, a fact a line."""
    cpu, built = found["cpu"], found["torch_cuda"]
    lines = [("platform", found["platform"])]
    lines += [("CPU", f"{cpu['name']}, {cpu['cores']} cores, torch takes {cpu['threads']} threads")]
    lines += [(name, version or "not installed") for name, version in found["versions"].items()]
    lines += [("torch is built", f"for CUDA {built}" if built else "for the CPU alone")]
    if found["no_gpu"]:
        lines += [("GPU", f"no GPU that torch can see: {found['no_gpu']}")]
    elif found["driver_cuda"]:
        lines += [("driver", f"takes CUDA up to {found['driver_cuda']}")]
    for number, gpu in enumerate(found["gpus"]):
        facts = f"{gpu['memory_gib']:.1f} GiB, compute capability {gpu['capability']}"
        lines += [(f"cuda:{number}", f"{gpu['name']}, {facts}")]
    for check in found["checks"]:
        state = {True: "works", False: "DOES NOT WORK", None: "not tried"}[check["works"]]
        lines += [(check["what"], f"{state}: {check['says']}")]
        lines += [("", f"mend it: {check['mend']}")] if check["mend"] else []
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in lines)


# --- the machine ---------------------------------------------------------------------------------------------------


def _cpu_name() -> str:
    """As Linux calls it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def no_gpu() -> str | None:
    """Why torch sees no GPU, in one line; None if it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return _one_line(error) + ("" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})")
    return "torch.cuda.is_available() says so"


def _driver() -> str | None:
    """The newest CUDA that the driver takes, if torch tells: 12.4."""
    told = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    return f"{told // 1000}.{told % 1000 // 10}" if told else None


def _gpu(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }


# --- the kernels ---------------------------------------------------------------------------------------------------


def _checks(no_gpu: str | None) -> list[Check]:
    scan, convolution = "scan on CUDA", "convolution on CUDA"
    on_cpu = [_tried("scan on CPU", "cpu", _scan_difference, _cpu_backend)]
    on_cpu += [_tried("convolution on CPU", "cpu", _convolution_difference, _cpu_backend)]
    if no_gpu:
        return [*on_cpu, Check(scan, None, "no GPU that torch can see"), Check(convolution, None, "the same")]
    missing = cuda.causal_conv1d_missing()
    by = f"torch, since causal-conv1d cannot be loaded ({_one_line(missing)})" if missing else "causal-conv1d"
    convolves = _tried(convolution, "cuda", _convolution_difference, lambda: by)
    if missing:
        convolves = replace(convolves, mend=_mend())
    return [*on_cpu, _tried(scan, "cuda", _scan_difference, lambda: active_backend("cuda")), convolves]


def _tried(what: str, device: str, difference: Callable[[str], float], backend: Callable[[], str]) -> Check:
    """Call a kernel on `device`, and tell what came of it."""
    mend = _mend() if device == "cuda" else "pip install --force-reinstall --no-deps numba llvmlite"
    try:
        largest, name = difference(device), backend()
    except cuda.CudaExtensionError:
        return Check(what, False, f"cannot be loaded: {_one_line(cuda.cuda_extension_missing())}", mend)
    except _FAILS as error:
        return Check(what, False, f"{type(error).__name__}: {_one_line(error)}", mend)
    if not largest <= BOUND:  # NaN is not
        return Check(what, False, f"{name} answers WRONGLY: off by {largest:.2g} from the reference", mend)
    return Check(what, True, f"{name}, within {largest:.0e} of the reference")


def _scan_difference(device: str) -> float:
    """Between selective_scan in float32 on `device` and its reference, gradients included: see `_difference`."""
    draw = torch.Generator().manual_seed(0)
    rows, length, channels, states = 2, 5, 8, 4
    wide, narrow = (rows, length, channels), (rows, length, states)
    shapes = [wide, wide, (channels, states), narrow, narrow, (channels,), wide, (channels,)]
    u, delta, A, *rest = (torch.randn(shape, generator=draw) for shape in shapes)
    given = [u, delta - 2, -A.exp(), *rest]
    return _difference(selective_scan, selective_scan_reference, given, device)


def _convolution_difference(device: str) -> float:
    """The same of causal_conv1d, against torch's convolution."""
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draw) for shape in ((2, 5, 8), (8, 4), (8,))]

    def reference(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor) -> Tensor:
        return cuda.causal_conv1d_torch(x, weight, bias, "silu").masked_fill(cuda.padding(lengths, x), 0)

    return _difference(causal_conv1d, reference, given, device)


def _difference(kernel: Callable[..., Tensor], reference: Callable[..., Tensor], given: list[Tensor], on: str) -> float:
    """The largest, as a share of the largest value, in the output and in each gradient; the reference in float64."""
    lengths = torch.tensor([5, 3])
    answers = []
    for function, device, dtype in ((kernel, on, torch.float32), (reference, "cpu", torch.float64)):
        leaves = [each.detach().to(device, dtype).requires_grad_() for each in given]
        y = function(*leaves, lengths=lengths.to(device))
        y.square().sum().backward()
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        answers.append([each.detach().double().cpu() for each in (y, *gradients)])
    shares = [(one - other).abs().max() / other.abs().max() for one, other in zip(*answers, strict=True)]
    return float(torch.stack(shares).max())  # NaN if one is


def _cpu_backend() -> str:
    from recbole_sigma.ops.cpu.compiler import cache_folder  # here, because it imports numba

    folder = cache_folder()
    kept = f"kernels kept in {folder}" if folder else "nowhere to keep kernels (NUMBA_CACHE_DIR): each start compiles"
    return f"{active_backend('cpu')}, {kept}"


def _mend() -> str:
    """The command that installs the kernels; how to compile them for the GPU that is here is a page of its own."""
    chip = "".join(map(str, torch.cuda.get_device_capability()))
    return f"{cuda.INSTALL}  # compiles for many GPUs; for this one alone, sm_{chip}: {_GUIDE}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
