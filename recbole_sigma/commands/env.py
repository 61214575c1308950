"""recbole-sigma env [--json]

Show what a run would find on this machine: versions, devices, and whether scan and convolution work on each; where not,
the command that fixes it. They are called on a few numbers and compared with their reference: that a kernel can be
imported says little of one that was compiled for another torch or GPU.

examples:
  recbole-sigma env
  recbole-sigma env --json
      for a program, or for the report of a problem
"""

import json
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.commands.terminal import table
from recbole_sigma.errors import UserError, one_line

OPTIONAL = ("ray", "hyperopt")  # packages that `tune` and `--engine=ray` use
BOUND = 1e-3  # of a difference, relative to the largest value: float32, and kernels with fast-math


def main(argv: Sequence[str]) -> None:
    """Print what a run would find on this machine."""
    parser = options.command_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    args, settings = options.parse(parser, argv)
    if settings:
        raise UserError(f"env takes --json, got --{next(iter(settings))}")
    machine = inspect_machine()
    if args.json:
        print(json.dumps(machine, indent=2))
        return
    cpu, cuda = machine["cpu"], machine["torch_cuda"]
    rows = [["platform", machine["platform"]]]
    rows += [["CPU", f"{cpu['name']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads"]]
    rows += [[name, version or "not installed"] for name, version in machine["versions"].items()]
    rows += [["torch is built", f"for CUDA {cuda}" if cuda else "for the CPU alone"]]
    if machine["no_gpu"]:
        rows += [["GPU", f"no GPU that torch can see: {machine['no_gpu']}"]]
    elif machine["driver_cuda"]:
        rows += [["driver", f"supports CUDA up to {machine['driver_cuda']}"]]
    for number, gpu in enumerate(machine["gpus"]):
        memory, capability = f"{gpu['memory_gib']:.1f} GiB", f"compute capability {gpu['capability']}"
        rows += [[f"cuda:{number}", f"{gpu['name']}, {memory}, {capability}"]]
    state = {True: "works", False: "DOES NOT WORK", None: "not tried"}
    rows += [[check["what"], f"{state[check['works']]}: {check['says']}"] for check in machine["checks"]]
    print(table([], rows))
    for check in machine["checks"]:
        if check["fix"]:
            print(f"\nto fix {check['what']}:\n{check['fix']}")  # in one line, to be copied


def inspect_machine() -> dict[str, Any]:
    """What a run would find on this machine, as plain values."""
    import torch

    from recbole_sigma import environment

    missing, names = environment.no_gpu(), (*environment.PACKAGES, *OPTIONAL)
    installed = environment.versions(names)
    driver = 0 if missing else getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    gpus = []
    for number in range(0 if missing else torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory, capability = round(gpu.total_memory / 2**30, 1), f"{gpu.major}.{gpu.minor}"
        gpus.append({"name": gpu.name, "memory_gib": memory, "capability": capability})
    checks = [check_kernel(kernel, "cpu") for kernel in ("scan", "convolution")]
    for kernel in ("scan", "convolution"):
        not_tried = {"what": f"{kernel} on CUDA", "works": None, "says": "no GPU that torch can see", "fix": None}
        checks.append(not_tried if missing else check_kernel(kernel, "cuda"))
    return {
        "platform": platform.platform(),
        "cpu": {"name": environment.cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": installed["python"], **{name: installed.get(name) for name in names}},
        "torch_cuda": torch.version.cuda,
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}" if driver else None,
        "no_gpu": missing,
        "gpus": gpus,
        "checks": checks,
    }


def check_kernel(kernel: str, device: str) -> dict[str, Any]:
    """Whether the `scan` or the `convolution` of `device` works: `what`, `works`, `says`, and a command as `fix`."""
    import torch

    from recbole_sigma.ops import active_backend, cuda

    fix, missing = "pip install --force-reinstall --no-deps numba llvmlite", None
    if device == "cuda":
        chip = "".join(map(str, torch.cuda.get_device_capability()))
        fix = f"{cuda.INSTALL}  # compiles for many GPUs; for this one alone, sm_{chip}: docs/cuda.md"
        missing = cuda.causal_conv1d_missing() if kernel == "convolution" else None
    works = False
    try:
        largest = difference(*_problem(kernel), device)
        if device == "cpu":
            from recbole_sigma.ops.cpu.compiler import cache_folder  # imports numba

            folder = cache_folder()
            kept = f"kernels kept in {folder}" if folder else "kernels compiled at each start: set NUMBA_CACHE_DIR"
            backend = f"{active_backend(device)}, {kept}"
        elif kernel == "scan":
            backend = active_backend(device)
        else:
            unavailable = f"torch, since causal-conv1d cannot be loaded ({one_line(missing)})"
            backend = unavailable if missing else "causal-conv1d"
        works = largest <= BOUND  # NaN is not
        says = f"{backend}, {'within' if works else 'WRONG: off by'} {largest:.0e} of the reference"
    except cuda.CudaExtensionError:
        says = f"cannot be loaded: {one_line(cuda.cuda_extension_missing())}"
    except (*cuda.LOADING_FAILS, TypeError, ValueError, NotImplementedError) as error:
        says = f"{type(error).__name__}: {one_line(error)}"  # of a kernel for another torch, Python or GPU
    fixed = works and not missing
    return {"what": f"{kernel} on {device.upper()}", "works": works, "says": says, "fix": None if fixed else fix}


def _problem(kernel: str) -> tuple[Callable[..., Any], Callable[..., Any], list[Any]]:
    """The function, its reference, and inputs in float32: two rows of 5 steps, 8 channels, 4 states."""
    import torch
    from torch import Tensor

    from recbole_sigma.ops import causal_conv1d, cuda, selective_scan, selective_scan_reference

    def convolution(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor) -> Tensor:
        return cuda.causal_conv1d_torch(x, weight, bias, "silu").masked_fill(cuda.padding(lengths, x), 0)

    draw = torch.Generator().manual_seed(0)
    if kernel == "convolution":
        shapes: list[tuple[int, ...]] = [(2, 5, 8), (8, 4), (8,)]
        return causal_conv1d, convolution, [torch.randn(shape, generator=draw) for shape in shapes]
    shapes = [(2, 5, 8), (2, 5, 8), (8, 4), (2, 5, 4), (2, 5, 4), (8,), (2, 5, 8), (8,)]
    u, delta, A, *rest = (torch.randn(shape, generator=draw) for shape in shapes)
    return selective_scan, selective_scan_reference, [u, delta - 2, -A.exp(), *rest]


def difference(kernel: Callable[..., Any], reference: Callable[..., Any], inputs: list[Any], device: str) -> float:
    """The largest difference in the output and in each gradient, relative to the largest value.

    `kernel` runs on `device` in float32, `reference` on the CPU in float64; both on two rows of lengths 5 and 3. NaN if
    one of them is.
    """
    import torch

    lengths = torch.tensor([5, 3])
    results = []
    for function, where, dtype in ((kernel, device, torch.float32), (reference, "cpu", torch.float64)):
        leaves = [each.detach().to(where, dtype).requires_grad_() for each in inputs]
        y = function(*leaves, lengths=lengths.to(where))
        y.square().sum().backward()
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        results.append([each.detach().double().cpu() for each in (y, *gradients)])
    relative = [(one - other).abs().max() / other.abs().max() for one, other in zip(*results, strict=True)]
    return float(torch.stack(relative).max())
