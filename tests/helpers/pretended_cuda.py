"""A pretended GPU: tensors on the CPU that report the device `cuda:0` and refuse what CUDA tensors refuse.

Real values run through real code, so code that reads values works, and code that mixes devices is found without a GPU:
an operation on tensors of both, NumPy on a CUDA tensor, a tensor created without its device. (torch's FakeTensorMode
cannot do this: it has no values, and in a CPU build autograd on its CUDA tensors crashes Python.)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from recbole_sigma.ops import cuda, scan, selective_scan_reference

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_COPIES = ("copy_", "__set__", "_has_compatible_shallow_copy_type")  # from one device to the other
_INDEXING = ("__getitem__", "__setitem__")  # by indices that may be on the CPU
_MOVES = ("to", "cuda", "cpu")


class OnGpu(Tensor):
    """A tensor that reports to be on the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as an ordinary tensor: whoever reads the file chooses the device."""
        return _seen_as(Tensor, self).__reduce_ex__(protocol)


class _Mode(TorchFunctionMode):
    """`device="cuda"` creates such tensors, results of them are on the GPU, too, and mixtures are errors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in _MOVES and args and isinstance(args[0], Tensor):
            return _moved(func, name, *args, **kwargs)
        if name in ("numpy", "__array__") and isinstance(args[0], OnGpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        _refuse_mixture(name, args, kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            trained = kwargs.pop("requires_grad", False)
            result = _all_as(OnGpu, func(*args, **{**kwargs, "device": CPU}))
            return result.requires_grad_() if trained else result
        result = func(*args, **kwargs)
        if device is not None:
            return _all_as(Tensor, result) if torch.device(device).type == "cpu" else result
        return _all_as(OnGpu, result) if any(map(_is_on_gpu, tree_iter((args, kwargs)))) else result


def _is_on_gpu(value: Any) -> bool:
    return isinstance(value, OnGpu)


def _seen_as(kind: type[Tensor], tensor: Tensor) -> Tensor:
    """The same numbers and the same graph; parameters stay what they are."""
    if isinstance(tensor, OnGpu) == (kind is OnGpu):
        return tensor
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(kind)


def _all_as(kind: type[Tensor], result: Any) -> Any:
    return tree_map(lambda each: _seen_as(kind, each) if isinstance(each, Tensor) else each, result)


def _moved(func: Any, name: str, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`x.to(...)`, `x.cuda()`, `x.cpu()`: a copy where the device changes."""
    targets = [each for each in (*args, *kwargs.values()) if isinstance(each, (str, torch.device, Tensor))]
    target = {"cpu": CPU, "cuda": GPU}.get(name) or (targets[0] if targets else source.device)
    kind = OnGpu if torch.device(getattr(target, "device", target)).type == "cuda" else Tensor
    result = source
    if name == "to":
        on_cpu = [CPU if isinstance(each, (str, torch.device)) else each for each in args]
        result = func(source, *on_cpu, **{key: CPU if key == "device" else each for key, each in kwargs.items()})
    moves = isinstance(source, OnGpu) != (kind is OnGpu)
    return _seen_as(kind, result.clone() if moves else result)


def _refuse_mixture(name: str, args: Any, kwargs: Any) -> None:
    """Raise what torch raises for tensors on both devices; numbers (no dimension) may come from the CPU."""
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    mixed = any(map(_is_on_gpu, tensors)) and any(each.dim() and not _is_on_gpu(each) for each in tensors)
    if mixed and name not in _COPIES and not (name in _INDEXING and _is_on_gpu(args[0])):
        devices = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {devices}")


def _selective_scan_fn(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, softplus: bool) -> Tensor:
    """mamba-ssm's, with the checks of its C++ code."""
    assert all(each is None or each.is_cuda for each in (u, delta, A, B, C, D, z, bias))
    assert u.dtype == delta.dtype == B.dtype == C.dtype and (z is None or z.dtype == u.dtype)
    assert all(each is None or each.dtype == torch.float32 for each in (A, D, bias))
    wide = [None if each is None else each.transpose(1, 2).float() for each in (u, delta, B, C, z)]
    y = selective_scan_reference(wide[0], wide[1], A, wide[2], wide[3], D, wide[4], bias, softplus)
    return y.transpose(1, 2).to(u.dtype)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """One GPU with mamba-ssm's extension, as far as torch and our code can see."""
    import torch._dynamo  # optimisers import it, and it would list the functions replaced here

    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "get_device_name": "NVIDIA Pretended", "max_memory_allocated": 2**30,
        "get_device_properties": SimpleNamespace(total_memory=2**36), "is_current_stream_capturing": False,
        "get_rng_state_all": [torch.zeros(16, dtype=torch.uint8)], "set_rng_state_all": None, "set_device": None,
        "reset_peak_memory_stats": None, "synchronize": None, "manual_seed": None, "manual_seed_all": None,
    }  # fmt: skip
    interface = SimpleNamespace(selective_scan_fn=_selective_scan_fn)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        for module in (cuda, scan):
            stack.enter_context(patch.object(module, "require_cuda_extension", lambda: None))
            stack.enter_context(patch.object(module, "causal_conv1d_missing", lambda: "it is pretended"))
        stack.enter_context(patch.object(cuda, "import_module", lambda name: interface))
        stack.enter_context(patch.object(scan, "version", lambda name: "0"))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        # a parameter becomes a tensor of the other class
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield
