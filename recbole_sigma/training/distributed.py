"""Training in several processes: each takes its shard of every batch, and all take the same step.

The gradient of a step is that of the whole batch, however it is split. Dropout and masks are drawn differently than in
one process; everything else is the same up to rounding.
"""

import datetime
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recbole_sigma.errors import Interrupted, UserError

_NOTICES = "RECBOLE_SIGMA_NOTICES"  # directory through which workers report to the process that started them


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one has number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, a plain value or arrays, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def announce(self, run_directory: Path) -> None:
        """Tell the process that started this one by `launch`, if any, where the run is."""
        if _NOTICES in os.environ:
            Path(os.environ[_NOTICES], "run_directory").write_text(str(run_directory), encoding="utf-8")

    def copy_from_first(self, module: nn.Module) -> None:
        """Copy parameters and buffers from the first process."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: float, targets: int) -> tuple[float, int]:
        """Turn the gradients of this process's mean loss into those of the mean over all processes' targets.

        `loss` is the mean over this process's targets, of which there may be none. Returns that over all, and their
        number.
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
        pieces = (flat / count).split([grad.numel() for grad in grads])
        for parameter, piece, is_used in zip(parameters, pieces, used, strict=True):
            parameter.grad = piece.view_as(parameter) if is_used else None
        return total / count, int(count)


ALONE = Group()
VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # as torchrun sets them


def join(config: Any) -> Group:
    """Enter the process group that the environment describes; set `config["device"]` to this process's GPU.

    Raises UserError where `gpu_id` names fewer GPUs than there are processes on this machine.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    if config["device"].type == "cuda":
        gpus = str(config["gpu_id"]).split(",")
        if local_rank >= len(gpus):
            given = config["gpu_id"]
            raise UserError(f"gpu_id must name one GPU per process; process {local_rank} has none, got {given!r}")
        config["device"] = torch.device("cuda", int(gpus[local_rank]))
        torch.cuda.set_device(config["device"])
    backend = "nccl" if config["device"].type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method="env://", timeout=datetime.timedelta(minutes=30))
    if not config["threads"]:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(torch.get_num_threads() // here, 1))
    return Group(dist.get_rank(), dist.get_world_size())


def launch(nproc: int, work: Callable[..., Any], *args: Any) -> Any:
    """Call `work(*args)` in `nproc` new processes of this machine; the first one's return value.

    Raises the UserError of a process, one for a process that was killed (the others stop), and Interrupted for Ctrl-C.
    Exits with status 2 and a line for a script whose calls are not below `if __name__ == '__main__':`.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a new process runs the user's script again
        error = (
            "nproc: processes that are started import the script; write its calls below `if __name__ == '__main__':`"
        )
        Path(os.environ[_NOTICES], "no_guard").write_text(error, encoding="utf-8")
        os._exit(2)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:  # each has a level of its own; what they report, we report
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=nproc, run_id=str(os.getpid()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, start_method="spawn",
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as notices:

        def notice(name: str) -> str:
            file = Path(notices, name)
            return file.read_text(encoding="utf-8") if file.exists() else ""

        os.environ[_NOTICES] = notices
        try:
            return elastic_launch(settings, _work)(work, args)[0]
        except ChildFailedError as error:
            if message := notice("no_guard"):
                print(message, file=sys.stderr)
                raise SystemExit(2) from None  # in a script, where a traceback would only hide the line
            if message := notice("error"):
                raise UserError(message) from None
            _, failure = error.get_first_failure()
            reason = failure.signal_name() if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            hint = f"; resume with --resume={notice('run_directory')}" if notice("run_directory") else ""
            raise UserError(f"nproc: a process stopped with {reason}{hint}") from None
        except (SignalException, KeyboardInterrupt):
            raise Interrupted(notice("run_directory")) if notice("run_directory") else KeyboardInterrupt from None
        finally:
            del os.environ[_NOTICES]
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _work(work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """In a worker: do the work; leave at once after an error, so that the launcher stops those who wait for it."""
    try:
        return work(*args)
    except UserError as error:
        Path(os.environ[_NOTICES], "error").write_text(str(error), encoding="utf-8")
        os._exit(2)
    except KeyboardInterrupt:
        os._exit(130)
