"""Where the time of a training step goes: its stages by the clock, its kernels by torch.profiler."""

import re
from collections import defaultdict
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pandas as pd
import torch.nn.functional as F
from contestants import Contestant
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils.benchmark import timer

from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.chunks import length_chunks
from recbole_sigma.ops.softmax import softmax_loss

# What a kernel or operator is for, by the first pattern that its name matches. GEMMs belong to projections and softmax.
PURPOSES = (
    ("scan", r"selective_?scan"),
    ("convolution", r"conv|fprop|dgrad|wgrad"),
    ("GRU", r"gru|rnn|_recurrence"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy|blockwiseloss"),
    ("optimiser", r"adam|multi_tensor|foreach|optimizer"),
    ("matrix products", r"gemm|gemv|cutlass|cublas|addmm|aten::mm|aten::bmm|matmul|nvjet"),
    ("normalisation", r"layer_?norm|vectorized_layer|gammabeta"),
    ("gather, scatter, sort", r"index|gather|scatter|embedding|sort|radix|unique|scan_by_key|devicescan"),
    ("copies and fills", r"copy|memcpy|memset|fill|zero|::cat|catarray"),
    ("dropout", r"dropout|bernoulli|philox|random"),
)
REST = "the rest, mostly element by element"
LAUNCHES, COPIES, WAITS = r"^(cuda|cu)(Graph)?Launch", r"^cudaMemcpy", r"^cuda\w*Synchronize"


def profile(contestant: Contestant, steps: int, warm_up: int) -> dict[str, Any]:
    """Milliseconds of a training step by stage, purpose and operator; calls of the device, and how busy it is."""
    contestant.train(warm_up)
    started = timer()
    contestant.train(steps)
    step_ms = (timer() - started) / steps * 1000
    stages, chunks = _time_stages(contestant, steps)
    on_gpu = contestant.device.type == "cuda"
    with torch_profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        contestant.train(steps)
        timer()  # waits for the device
    return {
        "profile": contestant.label,
        "steps": steps,
        "step_ms": step_ms,
        "stages_ms": stages,
        "chunks_per_step": chunks,
        **_summary(profiler.key_averages(), on_gpu, steps, step_ms),
    }


def _time_stages(contestant: Contestant, steps: int) -> tuple[dict[str, float], float | None]:
    """Milliseconds of each stage of a step, with a wait for the device after each, and chunks per step of our models.

    The step is cut at the representation, so that the forward and backward pass of the softmax are timed alone.
    """
    model, optimizer, device = contestant.model, contestant.optimizer, contestant.device
    one_pass = contestant.ours and contestant.config["train_mode"] == "sequence"
    spent, chunks = defaultdict[str, float](float), 0

    def timed(stage: str, work: Callable[..., Any], *args: Any) -> Any:
        started = timer()
        result = work(*args)
        spent[stage] += (timer() - started) / steps * 1000
        return result

    def encode(items: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        if one_pass:
            return model.encode_prefixes(items, Rows(lengths, "prefixes"))[wanted]
        return model.forward(items, lengths)

    def softmax(representation: Tensor, target: Tensor) -> Tensor | None:
        """The gradient of the loss with respect to the representation, (B, D)."""
        leaf, weight = representation.detach().requires_grad_(), model.item_embedding.weight
        loss = softmax_loss(leaf, weight, target) if contestant.ours else F.cross_entropy(leaf @ weight.T, target)
        loss.item()
        loss.backward()
        return leaf.grad

    model.train()
    for _ in range(steps):
        batch = timed("data", next, contestant.batches)
        batch = timed("to the device", batch.to, device)
        lengths, target = batch[model.ITEM_SEQ_LEN], batch[model.POS_ITEM_ID]
        wanted = target.nonzero()[:, 0]  # of flat histories, positions whose next item is a target; else all
        optimizer.zero_grad()
        representation = timed("encoder, forward", encode, batch[model.ITEM_SEQ], lengths, wanted)
        gradient = timed("softmax, both ways", softmax, representation, target[wanted])
        timed("encoder, backward", representation.backward, gradient)
        timed("optimiser", optimizer.step)
        if contestant.ours and not one_pass:
            chunks += len(length_chunks(lengths.cpu().sort().values, model.length_ratio))
    return spent, chunks / steps if chunks else None


def _summary(averages: Any, on_gpu: bool, steps: int, step_ms: float) -> dict[str, Any]:
    """What the profiler recorded: on CUDA times of kernels, on CPU of operators without the operators they call."""

    def calls(pattern: str) -> float:
        return sum(event.count for event in averages if re.search(pattern, event.key)) / steps

    def is_timed(event: Any) -> bool:
        """On CUDA: kernels, without the ranges that the profiler marks around them, such as the optimiser's."""
        return not on_gpu or (event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False))

    time_of = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    rows = [(event.key, time_of(event) / 1000 / steps, event.count / steps) for event in averages if is_timed(event)]
    table = pd.DataFrame(rows, columns=["name", "ms", "calls"])
    table = table[table.ms > 0].sort_values("ms", ascending=False)
    counted = {"kernels, copies, fills on the device" if on_gpu else "operators": float(table.calls.sum())}
    if on_gpu:
        counted |= {"launches": calls(LAUNCHES), "copies": calls(COPIES), "waits": calls(WAITS)}
    return {
        "times_of": "kernels" if on_gpu else "operators",
        "sum_ms": float(table.ms.sum()),
        "device_busy": float(table.ms.sum()) / step_ms if on_gpu else None,
        "calls_per_step": counted,
        "purposes_ms": table.groupby(table.name.map(purpose_of)).ms.sum().sort_values(ascending=False).to_dict(),
        "top": table.head(20).to_dict("records"),
    }


def purpose_of(name: str) -> str:
    """What an operator or a kernel is for."""
    return next((purpose for purpose, pattern in PURPOSES if re.search(pattern, name, re.IGNORECASE)), REST)


def profile_tables(results: dict[str, Any]) -> str:
    """The results of `profile` as text."""
    chunks = f", {results['chunks_per_step']:.1f} chunks" if results["chunks_per_step"] else ""
    busy = f"; the device is busy for {results['device_busy']:.0%} of it" if results["device_busy"] else ""
    calls = ", ".join(f"{number:.0f} {name}" for name, number in results["calls_per_step"].items())
    texts = [f"{results['profile']}: {results['step_ms']:.2f} ms per step{chunks}{busy}\ncalls per step: {calls}"]
    times_of = results["times_of"]
    titles = {"stages_ms": "stage, with a wait for the device after each", "purposes_ms": f"purpose of {times_of}"}
    for key, title in titles.items():
        spent = pd.DataFrame({title: results[key].keys(), "ms per step": results[key].values()})
        spent["percent"] = 100 * spent["ms per step"] / spent["ms per step"].sum()
        texts.append(spent.to_markdown(index=False, tablefmt="simple", floatfmt=("", ".3f", ".0f")))
    top = pd.DataFrame(results["top"]).assign(name=lambda table: table.name.str[:80])
    top = top.set_axis([f"longest {times_of}", "ms per step", "calls"], axis=1)
    return "\n\n".join([*texts, top.to_markdown(index=False, tablefmt="simple", floatfmt=("", ".3f", ".0f"))])
