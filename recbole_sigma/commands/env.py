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
import math
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from recbole_sigma.commands import options
from recbole_sigma.errors import one_line

OPTIONAL = ("ray", "hyperopt")  # packages that `tune` and `--engine=ray` use


def main(argv: Sequence[str]) -> None:
    """Print what a run would find on this machine."""
    parser = options.command_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    args, _ = options.parse(parser, argv, no_settings="env takes --json")
    machine = inspect_machine()
    if args.json:
        print(json.dumps(machine, indent=2))
    else:  # lines are not broken: a command that fixes something can be copied
        print(yaml.safe_dump(machine, sort_keys=False, allow_unicode=True, width=math.inf), end="")


def inspect_machine() -> dict[str, Any]:
    """What a run would find on this machine, as plain values."""
    import torch

    from recbole_sigma import environment

    missing, names = environment.no_gpu(), (*environment.PACKAGES, *OPTIONAL)
    installed = environment.versions(names)
    gpus = [] if missing else [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)() if gpus else 0
    return {
        "platform": platform.platform(),
        "cpu": {"name": environment.cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: installed.get(name) for name in ("python", *names)},
        "torch_cuda": torch.version.cuda,
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}" if driver else None,
        "no_gpu": missing,
        "gpus": [
            {"name": x.name, "memory_gib": round(x.total_memory / 2**30, 1), "capability": f"{x.major}.{x.minor}"}
            for x in gpus
        ],
        "checks": [check_kernel(kernel, device) for device in ("cpu", "cuda") for kernel in ("scan", "convolution")],
    }


def check_kernel(kernel: str, device: str) -> dict[str, Any]:
    """Whether the `scan` or the `convolution` of `device` works: `what`, `works`, `says`, and a command as `fix`."""
    import torch

    from recbole_sigma.ops import cuda

    what = f"{kernel} on {device.upper()}"
    if device == "cuda" and not torch.cuda.is_available():
        return {"what": what, "works": None, "says": "no GPU that torch can see", "fix": None}
    works, library = False, "mamba-ssm" if kernel == "scan" else "causal-conv1d"
    fix, missing = "pip install --force-reinstall --no-deps numba llvmlite", None
    if device == "cuda":
        chip = "".join(map(str, torch.cuda.get_device_capability()))
        fix = f"{cuda.INSTALL}  # compiles for many GPUs; for this one alone, sm_{chip}: docs/cuda.md"
        missing = cuda.causal_conv1d_missing() if kernel == "convolution" else None
        library = f"torch, since causal-conv1d cannot be loaded ({missing})" if missing else library
    try:
        largest = difference(*_problem(kernel), device)
        if device == "cpu":
            from recbole_sigma.ops.cpu.compiler import cache_folder  # imports numba

            folder = cache_folder()
            kept = f"kept in {folder}" if folder else "compiled at each start: set NUMBA_CACHE_DIR"
            library = f"numba, kernels {kept}"
        works = largest <= 1e-3  # for float32, and kernels with fast-math; NaN is not
        says = f"{library}, {'within' if works else 'WRONG: off by'} {largest:.0e} of the reference"
    except (*cuda.LOADING_FAILS, TypeError, ValueError, NotImplementedError) as error:
        says = f"{type(error).__name__}: {error}"  # not installed, or for another torch, Python or GPU
    return {"what": what, "works": works, "says": one_line(says), "fix": None if works and not missing else fix}


def _problem(kernel: str) -> tuple[Callable[..., Any], Callable[..., Any], list[Any]]:
    """The function, its reference, and inputs in float32: two rows of 5 steps, 8 channels, 4 states."""
    import torch

    from recbole_sigma.ops import causal_conv1d, cuda, selective_scan, selective_scan_reference

    def convolution(x: Any, weight: Any, bias: Any, lengths: Any) -> Any:
        return cuda.causal_conv1d_torch(x, weight, bias, "silu").masked_fill(cuda.padding(lengths, x), 0)

    draw = torch.Generator().manual_seed(0)
    if kernel == "convolution":
        return causal_conv1d, convolution, [torch.randn(shape, generator=draw) for shape in [(2, 5, 8), (8, 4), (8,)]]
    shapes = [(2, 5, 8), (2, 5, 8), (8, 4), (2, 5, 4), (2, 5, 4), (8,), (2, 5, 8), (8,)]
    u, delta, A, *rest = (torch.randn(shape, generator=draw) for shape in shapes)
    return selective_scan, selective_scan_reference, [u, delta - 2, -A.exp(), *rest]


def difference(kernel: Callable[..., Any], reference: Callable[..., Any], inputs: list[Any], device: str) -> float:
    """The largest difference in the output and in each gradient, relative to the largest value; NaN if one of them is.

    `kernel` runs on `device` in float32, `reference` on the CPU in float64; both on two rows of lengths 5 and 3.
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
