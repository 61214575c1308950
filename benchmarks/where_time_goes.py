"""Where the time of a training step goes: its stages by the clock, its kernels by torch.profiler."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from contestants import Contestant, synchronise
from tabulate import tabulate
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from recbole_sigma.model.chunks import length_chunks
from recbole_sigma.ops.softmax import softmax_loss

STAGES = ("data", "to the device", "encoder, forward", "softmax, both ways", "encoder, backward", "optimiser")
# What a kernel or operator is for, by its name; the first that fits. GEMMs are of projections and softmax alike.
PARTS = (
    ("scan", r"selective_?scan"),
    ("convolution", r"conv|fprop|dgrad|wgrad"),
    ("GRU", r"gru|rnn|_recurrence"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy|blockwiseloss"),
    ("optimiser", r"adam|multi_tensor|foreach|optimizer"),
    ("matrix products", r"gemm|gemv|cutlass|cublas|addmm|aten::mm|aten::bmm|matmul|nvjet"),
    ("normalisation", r"layer_?norm|vectorized_layer|gammabeta"),
    ("gather, scatter, sort", r"index|gather|scatter|embedding|sort|radix|unique|scan_by_key|devicescan"),
    ("copies and fills", r"copy|memcpy|memset|fill|zero|::cat|catarray"),
    ("dropout", r"dropout|bernoulli|philox"),
)  # fmt: skip
REST = "the rest, mostly element by element"
LAUNCH, COPY, WAIT = r"^(cuda|cu)(Graph)?Launch", r"^cudaMemcpy", r"^cuda\w*Synchronize"
TOP = 20


def profile(contestant: Contestant, steps: int, warm_up: int) -> dict[str, Any]:
    """Of a step: ms by stage, by part and by operator; how often the device is called, and how busy it is."""
    contestant.model.train()
    for _ in range(warm_up):
        contestant.train()
    step_ms = _step_ms(contestant, steps)
    stages, chunks = _stages(contestant, steps)
    activities = [ProfilerActivity.CPU]
    if contestant.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch_profile(activities=activities) as profiler:
        for _ in range(steps):
            contestant.train()
        synchronise(contestant.device)
    return {
        "profile": contestant.label,
        "steps": steps,
        "step_ms": step_ms,
        "stages_ms": stages,
        "chunks_a_step": chunks,
        **_of_events(profiler.key_averages(), contestant.device, steps, step_ms),
    }


def _step_ms(contestant: Contestant, steps: int) -> float:
    """Of a step as it is trained, nothing between to be measured."""
    synchronise(contestant.device)
    started = time.perf_counter()
    for _ in range(steps):
        contestant.train()
    synchronise(contestant.device)
    return (time.perf_counter() - started) / steps * 1000


def _stages(contestant: Contestant, steps: int) -> tuple[dict[str, float], float | None]:
    """ms of each stage of a step, the device waited for after each; and chunks a step, where ours chunks."""
    spent, chunks = dict.fromkeys(STAGES, 0.0), 0

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        synchronise(contestant.device)
        spent[stage] += (time.perf_counter() - started) / steps * 1000
        return result

    for _ in range(steps):
        chunks += _number_of_chunks(contestant, _step_in_stages(contestant, timed))
    return spent, chunks / steps if contestant.ours else None


def _step_in_stages(contestant: Contestant, timed: Callable[[str, Callable[[], Any]], Any]) -> Any:
    """A step, cut at the representation, so that the softmax goes both ways alone. Its batch."""
    model, optimizer = contestant.model, contestant.optimizer
    drawn = timed("data", contestant.batch)
    batch = timed("to the device", partial(drawn.to, contestant.device))
    optimizer.zero_grad()
    encode = partial(model.forward, batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
    represented = timed("encoder, forward", encode)
    gradient = timed("softmax, both ways", partial(_softmax, contestant, represented, batch))
    timed("encoder, backward", partial(represented.backward, gradient))
    timed("optimiser", optimizer.step)
    return batch


def _softmax(contestant: Contestant, represented: Tensor, batch: Any) -> Tensor:
    """The loss's gradient with respect to the representation, (B, D); that of the item embedding is kept."""
    leaf = represented.detach().requires_grad_()
    weight, target = contestant.model.item_embedding.weight, batch[contestant.model.POS_ITEM_ID]
    loss = softmax_loss(leaf, weight, target) if contestant.ours else F.cross_entropy(leaf @ weight.T, target)
    loss.item()
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def _number_of_chunks(contestant: Contestant, batch: Any) -> int:
    """How many parts of similar length the batch is encoded in."""
    if not contestant.ours:
        return 1
    lengths = batch[contestant.model.ITEM_SEQ_LEN].cpu().sort().values
    return len(length_chunks(lengths, contestant.model.length_ratio))


def _of_events(averages: Any, device: torch.device, steps: int, step_ms: float) -> dict[str, Any]:
    """What the profiler saw. On CUDA times are of kernels; on CPU of operators, without those that they call."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        timed = [(each.key, each.self_device_time_total, each.count) for each in averages if _is_kernel(each)]
    else:
        timed = [(each.key, each.self_cpu_time_total, each.count) for each in averages]
    timed = [(name, time / 1000 / steps, count / steps) for name, time, count in timed if time > 0]
    total = sum(ms for _, ms, _ in timed)
    parts: dict[str, float] = {}
    for name, ms, _ in timed:
        parts[part_of(name)] = parts.get(part_of(name), 0.0) + ms

    def calls(pattern: str) -> float:
        return sum(each.count for each in averages if re.search(pattern, each.key)) / steps

    return {
        "times_of": "kernels" if on_gpu else "operators",
        "sum_ms": total,
        "device_busy": total / step_ms if on_gpu else None,
        "calls_a_step": {
            "operators" if not on_gpu else "kernels, copies, fills on the device": sum(count for *_, count in timed),
            **({"launches": calls(LAUNCH), "copies": calls(COPY), "waits": calls(WAIT)} if on_gpu else {}),
        },
        "parts_ms": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "top": [
            {"name": name, "ms": ms, "calls": calls}
            for name, ms, calls in sorted(timed, key=lambda item: -item[1])[:TOP]
        ],
    }


def _is_kernel(event: Any) -> bool:
    """Not what a range of code took on the device, such as the optimiser's: its kernels count already."""
    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


def part_of(name: str) -> str:
    """What an operator or a kernel is for."""
    return next((part for part, pattern in PARTS if re.search(pattern, name, re.IGNORECASE)), REST)


def profile_tables(found: dict[str, Any]) -> str:
    """Stages, parts, calls and operators, as text."""
    chunks = f", {found['chunks_a_step']:.1f} chunks" if found["chunks_a_step"] else ""
    calls = ", ".join(f"{count:.0f} {name}" for name, count in found["calls_a_step"].items())
    busy = f"; the device is busy for {found['device_busy']:.0%} of it" if found["device_busy"] else ""
    stages, parts = found["stages_ms"], found["parts_ms"]
    top = [[each["name"][:80], each["ms"], each["calls"]] for each in found["top"]]
    return "\n\n".join([
        f"{found['profile']}: {found['step_ms']:.2f} ms a step{chunks}{busy}\na step calls {calls}",
        _shares("stage, the device waited for", stages),
        _shares(f"{found['times_of']} for", parts),
        tabulate(top, headers=[f"top {found['times_of']}", "ms a step", "calls"], floatfmt=("", ".3f", ".0f")),
    ])  # fmt: skip


def _shares(title: str, spent: dict[str, float]) -> str:
    whole = sum(spent.values()) or 1.0
    rows = [[name, ms, f"{ms / whole:.0%}"] for name, ms in spent.items()]
    return tabulate(rows, headers=[title, "ms a step", "share"], floatfmt=("", ".3f", ""))
