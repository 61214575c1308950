"""Our SIGMA and Mamba4Rec against the designs that their authors released, on mamba-ssm, and RecBole's SASRec.

    python benchmarks/gpu.py --data_path=data --dataset=amazon-beauty --epochs=2 --out=gpu.json
    python benchmarks/gpu.py --data_path=data --dataset=amazon-beauty --models=SIGMA,released:SIGMA \\
        --length_ratio=1.25,2,4,100
    python benchmarks/gpu.py --data_path=data --dataset=amazon-beauty --profile=SIGMA --out=profile.json
    python benchmarks/gpu.py --device=cpu --batch=256 --rounds=1 --steps=2       # tries the script, on ml-100k

One process: after a warm-up, rounds of `--steps` training steps and of `--steps` batches of inference go over all in
turn, so that the machine's drift meets all alike. A step is a batch drawn, moved to the device, its loss read, and
Adam; an epoch is the median round times the steps of an epoch. `--epochs` trains whole epochs as well, each by the
trainer that belongs to it, RecBole's or ours. Inference is scores of all items for a batch of test users that is on the
device. Memory is what torch allocated at most, with model, gradients and Adam's state. On CPU a block of ours stands in
for mamba-ssm's: its figures say that the script works, and nothing else.
(In the rivals' favour: anomaly detection, which importing RecBole's models switches on, is off, see compat.py.)
No script here is to be called cuda.py: it would hide NVIDIA's package `cuda`, which kernel libraries import.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from contestants import OURS, Contestant, Data, synchronise
from tabulate import tabulate
from tqdm import tqdm
from where_time_goes import profile, profile_tables

from recbole_sigma.config.values import parse_overrides
from recbole_sigma.environment import PACKAGES, device_name, versions
from recbole_sigma.errors import UserError
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.training.allocator import keep_freed_memory

MODELS = ("SIGMA", "Mamba4Rec", "SASRec", "released:SIGMA", "released:Mamba4Rec", "recbole:SASRec")
RIVAL, CHAMPION, GOAL = "released:SIGMA", "SIGMA", 1 / 3
HEADERS = (
    "", "s an epoch", f"of {RIVAL}", "whole epochs, s", "of it", "training, MB", "inference, ms a batch", "MB"
)  # fmt: skip


@dataclass
class Cost:
    """What the rounds gave for one contestant; seconds are of one step, one whole epoch, one batch."""

    label: str
    n_parameters: int
    steps_an_epoch: int
    step_seconds: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    inference_seconds: list[float] = field(default_factory=list)
    training_mb: float | None = None
    inference_mb: float | None = None

    @property
    def epoch(self) -> float:
        """Seconds, by the median round."""
        return statistics.median(self.step_seconds) * self.steps_an_epoch

    @property
    def whole_epoch(self) -> float | None:
        """Seconds of the median epoch that was measured whole."""
        return statistics.median(self.epoch_seconds) if self.epoch_seconds else None


def main() -> int:
    """Measure, print, write. 2 for what the user can mend."""
    args = parse_args()
    try:
        return measure(args)
    except (UserError, ValueError, CudaExtensionError) as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2


def parse_args() -> argparse.Namespace:
    """The command line; what is left of it are settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="Any --SETTING=VALUE besides is a setting of all, such as --MAX_ITEM_LIST_LENGTH=200.",
    )  # fmt: skip
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--dataset", default="ml-100k", help="(default: %(default)s, which RecBole brings along)")
    parser.add_argument("--models", default=",".join(MODELS), help="(default: %(default)s)")
    parser.add_argument("--length_ratio", default="", help="values to try with each of our models: 1.25,2,100")
    parser.add_argument("--batch", type=int, default=2048, help="train_batch_size (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each in a round (default: %(default)s)")
    parser.add_argument("--warm_up", type=int, default=5, help="steps of each before (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs of each, after one (default: %(default)s)")
    parser.add_argument("--profile", metavar="MODEL", help="where this one's time goes, instead of a race")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures")
    args, rest = parser.parse_known_args()
    args.settings = parse_overrides(rest)
    for name in ("batch", "rounds", "steps", "warm_up", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: --device=cpu tries the script")
    if args.out and not args.out.resolve().parent.is_dir():
        parser.error(f"there is no folder {args.out.parent} for {args.out.name}")
    try:
        args.ratios = [float(each) for each in args.length_ratio.split(",")] if args.length_ratio else [None]
    except ValueError:
        parser.error("--length_ratio must be numbers, separated by commas")
    return args


def measure(args: argparse.Namespace) -> int:
    """The race, or the profile of one."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    backend = active_backend(args.device)  # before minutes are spent on data
    own = {"data_path": args.data_path, "use_gpu": args.device == "cuda", "train_batch_size": args.batch}
    data = Data(args.dataset, {**own, "show_progress": False, **args.settings})
    facts = {**conditions(args, backend), "data": {"name": args.dataset, **data.facts}}
    if args.profile:
        racing = contestants([args.profile], args.ratios[:1], data)
        found: Any = profile(racing[0], args.steps, args.warm_up)
        print(f"{headline(facts)}\n\n{profile_tables(found)}")
    else:
        racing = contestants(args.models.split(","), args.ratios, data)
        costs = race(racing, args)
        found = {"contestants": [asdict(each) for each in costs], "shares": shares(costs), "goal": GOAL}
        print(f"{headline(facts)}\n{args.rounds} rounds of {args.steps} steps of each, in turn; medians\n")
        print(f"{table(costs)}\n\n{verdict(costs, args.device)}")
    if args.out:
        args.out.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")
    return 0


def contestants(names: list[str], ratios: list[float | None], data: Data) -> list[Contestant]:
    """One for each name, and ours for each ratio."""
    plan = [(name, ratio) for name in names for ratio in (ratios if name.rpartition(":")[0] == OURS else [None])]
    return [Contestant(name, data, ratio) for name, ratio in tqdm(plan, desc="data", disable=None)]


def race(racing: list[Contestant], args: argparse.Namespace) -> list[Cost]:
    """Warm-up, rounds, memory, whole epochs: all of each before the next."""
    costs = [Cost(each.label, each.n_parameters, len(each.loader)) for each in racing]
    pairs = list(zip(racing, costs, strict=True))
    for each in racing:
        seconds_each(each.train, args.warm_up, each.device)
        seconds_each(each.infer, args.warm_up, each.device)
    for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
        for each, cost in pairs:
            each.model.train()
            cost.step_seconds.append(seconds_each(each.train, args.steps, each.device))
            each.model.eval()
            cost.inference_seconds.append(seconds_each(each.infer, args.steps, each.device))
    for each, cost in pairs:
        each.model.train()
        cost.training_mb = peak_mb(each, each.train, args.steps)
        each.model.eval()
        cost.inference_mb = peak_mb(each, each.infer, 1)
    for number in tqdm(range(args.epochs + 1 if args.epochs else 0), desc="epochs", disable=None):
        for each, cost in pairs:
            seconds = each.epoch()
            if number:  # the first meets batches of sizes that no kernel was chosen for yet
                cost.epoch_seconds.append(seconds)
    return costs


def seconds_each(work: Callable[[], None], times: int, device: torch.device) -> float:
    """Mean seconds of `work`. The device is waited for at the ends only, as in training."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / times


def peak_mb(contestant: Contestant, work: Callable[[], None], times: int) -> float | None:
    """The most that torch allocated for this contestant, the others' models not counted; None on CPU."""
    device = contestant.device
    if device.type != "cuda":
        return None
    others = torch.cuda.memory_allocated(device) - contestant.held_bytes()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(times):
        work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - others) / 1e6


def table(costs: list[Cost]) -> str:
    """A row each, with ratios to the rival."""
    rival = next((cost for cost in costs if cost.label == RIVAL), None)
    rows = []
    for cost in costs:
        whole, rival_whole = cost.whole_epoch, rival.whole_epoch if rival else None
        rows.append([
            cost.label, cost.epoch, cost.epoch / rival.epoch if rival else None,
            whole, whole / rival_whole if whole and rival_whole else None,
            cost.training_mb, 1000 * statistics.median(cost.inference_seconds), cost.inference_mb,
        ])  # fmt: skip
    formats = ("", ".2f", ".3f", ".2f", ".3f", ".0f", ".2f", ".0f")
    return tabulate(rows, headers=HEADERS, tablefmt="github", floatfmt=formats, missingval="-")


def shares(costs: list[Cost]) -> dict[str, float]:
    """SIGMA's epoch as a part of the rival's, at each ratio; by the whole epochs where they were measured."""
    rival = next((cost for cost in costs if cost.label == RIVAL), None)
    ours = [cost for cost in costs if cost.label.partition(",")[0] == CHAMPION]
    return {each.label: (each.whole_epoch or each.epoch) / (rival.whole_epoch or rival.epoch) for each in ours if rival}


def verdict(costs: list[Cost], device: str) -> str:
    """Whether SIGMA's epoch is at most GOAL of the rival's."""
    lines = [
        f"{label}: {share:.3f} of {RIVAL}'s epoch; at most 1/3: {'yes' if share <= GOAL else 'no'}"
        for label, share in shares(costs).items()
    ]
    if not lines:
        return f"without {CHAMPION} and {RIVAL} among --models there is nothing to compare"
    if device == "cpu":
        lines.append("(on CPU, with a stand-in for mamba-ssm's block: no result)")
    return "\n".join(lines)


def conditions(args: argparse.Namespace, backend: str) -> dict[str, Any]:
    """What the figures depend on."""
    cuda = args.device == "cuda"
    return {
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "device": device_name(torch.device(args.device)),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "backend": {"ours": backend, "released": "mamba_ssm.Mamba" if cuda else "a stand-in, not mamba-ssm"},
        "versions": versions((*PACKAGES, "triton")),
        "settings": {"train_batch_size": args.batch, **args.settings},
        "measured": {name: getattr(args, name) for name in ("rounds", "steps", "warm_up", "epochs")},
    }


def headline(facts: dict[str, Any]) -> str:
    """One line of what the figures depend on."""
    packages = ", ".join(
        f"{name} {facts['versions'][name]}" for name in ("torch", "mamba-ssm") if name in facts["versions"]
    )
    return f"{facts['data']['name']}, batch {facts['settings']['train_batch_size']}, {facts['device']}, {packages}"


if __name__ == "__main__":
    sys.exit(main())
