"""Training in several processes: each takes its share of every batch, and all take the same step.

Started by `nproc` (RecBole's setting; `world_size`, `offset`, `ip`, `port` for several machines) or by torchrun. The
gradient of a step is that of the whole batch, whatever the shares; with two processes dropout and masks are drawn
otherwise than with one, everything else is the same up to rounding.
"""

import datetime
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recbole_sigma.errors import UserError

_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, a plain value or arrays, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def copy_from_first(self, module: nn.Module) -> None:
        """Parameters and buffers as the first process has them."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: float, targets: int) -> tuple[float, int]:
        """Turn gradients of this process's mean loss into those of the mean over all processes' targets.

        Args:
            loss: mean over this process's targets.
            targets: how many these are; 0 for a process that has no row of the batch.

        Returns: mean loss over all targets, and their number.
        """
        if self.size == 1:
            return loss, targets
        parameters = list(parameters)
        used = [float(parameter.grad is not None) for parameter in parameters]
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        tail = torch.tensor([*used, loss * targets if targets else 0.0, float(targets)], dtype=torch.float64)
        flat = torch.cat([(grad * targets).reshape(-1) for grad in grads])
        tail = tail.to(flat.device)
        dist.all_reduce(flat)
        dist.all_reduce(tail)
        *used, total, count = tail.tolist()
        parts = (flat / count).split([grad.numel() for grad in grads])
        for parameter, part, is_used in zip(parameters, parts, used, strict=True):
            parameter.grad = part.view_as(parameter) if is_used else None
        return total / count, int(count)


ALONE = Group()


@dataclass(frozen=True)
class Plan:
    """Which processes make a group. Of `size` in all, this machine starts `here`, numbered from `offset` on."""

    here: int
    size: int
    offset: int
    address: str

    @classmethod
    def of(cls, config: Any) -> "Plan":
        """From RecBole's settings. Raises UserError for settings that do not add up."""
        here, offset = config["nproc"], config["offset"] or 0
        size = config["world_size"] if config["world_size"] and config["world_size"] > 0 else here
        if not 0 <= offset <= size - here:
            raise UserError(f"world_size must be at least offset + nproc, {offset + here}, got {size}")
        if size > here and not (config["ip"] and config["port"]):
            raise UserError("ip and port of the machine of offset 0 must be given where world_size is more than nproc")
        ip, port = config["ip"] or "127.0.0.1", config["port"] or _free_port()
        if not str(port).isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"port must be a number from 1 to 65535, got {port!r}")
        return cls(here, size, offset, f"tcp://{ip}:{port}")


def by_torchrun() -> bool:
    """Whether torchrun (or who sets its variables) has started this process as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def join(config: Any, local_rank: int, plan: Plan | None = None) -> Group:
    """Enter the group of `plan`, or torchrun's; sets `config["device"]` to this process's.

    Raises UserError where there are fewer GPUs than processes.
    """
    if config["device"].type == "cuda":
        gpus = str(config["gpu_id"]).split(",")
        if local_rank >= len(gpus):
            raise UserError(
                f"gpu_id must name a GPU for each process, number {local_rank} has none, got {config['gpu_id']!r}"
            )
        config["device"] = torch.device("cuda", int(gpus[local_rank]))
        torch.cuda.set_device(config["device"])
    backend = "nccl" if config["device"].type == "cuda" else "gloo"
    if plan is None:
        dist.init_process_group(backend, init_method="env://", timeout=_TIMEOUT)
    else:
        rank = plan.offset + local_rank
        dist.init_process_group(backend, plan.address, timeout=_TIMEOUT, world_size=plan.size, rank=rank)
    if not config["threads"]:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if plan is None else plan.here
        torch.set_num_threads(max(torch.get_num_threads() // here, 1))
    return Group(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leave the group."""
    dist.destroy_process_group()


def launch(plan: Plan, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `work(local_rank, plan, report, *args)` in new processes; what they gave to `report`, in order.

    Raises UserError for one that a process raised, and for a process that was killed; the others are ended then.
    """
    reports = torch.multiprocessing.get_context("spawn").SimpleQueue()
    processes = torch.multiprocessing.spawn(_child, (plan, reports, work, args), nprocs=plan.here, join=False)
    failure = None
    try:
        while not processes.join():
            pass
    except torch.multiprocessing.ProcessExitedException as error:
        failure = f"a process ended with {error.signal_name or f'status {error.exit_code}'}"
    except KeyboardInterrupt:
        for process in processes.processes:
            process.join(30)  # Ctrl-C reaches them, too
        failure = "interrupted"
    told = []
    while not reports.empty():
        told.append(reports.get())
    errors = [text for kind, text in told if kind == "error"]
    if errors:
        raise UserError(errors[0])
    answers = [answer for kind, answer in told if kind == "answer"]
    if failure:
        raise EndedError(failure, answers)
    return answers


class EndedError(Exception):
    """Processes came to an end before their work did. `answers` is what they had reported."""

    def __init__(self, how: str, answers: list[Any]) -> None:
        super().__init__(how)
        self.answers = answers


def _child(local_rank: int, plan: Plan, reports: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        work(local_rank, plan, lambda answer: reports.put(("answer", answer)), *args)
    except UserError as error:
        reports.put(("error", str(error)))
        os._exit(2)  # at once: the others wait for this process, and are ended by its status
    except KeyboardInterrupt:
        os._exit(130)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
