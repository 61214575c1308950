"""Times training epochs and inference of models against a rival, RecBole's SASRec or a released design.

    python benchmarks/epoch.py --data_path=data --dataset=amazon-beauty
    python benchmarks/epoch.py --dataset=ml-100k --models=Mamba4Rec:sequence,Mamba4Rec --rival=Mamba4Rec
    python benchmarks/epoch.py --data_path=data --dataset=amazon-beauty --models=SIGMA,released:SIGMA \\
        --rival=released:SIGMA --length_ratio=1.25,2,4,100 --epochs=2 --out=ratio.json
    python benchmarks/epoch.py --data_path=data --dataset=amazon-beauty --profile=SIGMA --out=profile.json

Models are named as in contestants.py. All run in one process. After a warm-up, rounds of `--steps` training steps and
as many batches of inference go over all models in turn, so that the drift of the machine's speed affects them alike. A
step draws a batch, moves it to the device, reads its loss and updates the weights; an epoch is the median round times
the steps of an epoch. `--epochs` also times whole epochs, each by the model's own trainer, RecBole's or ours. Inference
scores all items for a batch of test users that is on the device. Memory (CUDA only) is the most that torch allocated,
including the model, gradients and the state of Adam. On CPU our block replaces mamba-ssm's in released designs: their
figures from there only show that the script works. Two things favour the rivals: anomaly detection, which importing
RecBole's models switches on, is off (compat.py), and the allocator keeps freed memory (training/allocator.py). On CPU
RecBole's model is measured once more in a process of its own, with the allocator as it is; printed below the table.
No script here may be called cuda.py: it would hide NVIDIA's package `cuda`, which kernel libraries import.
"""

import recbole_sigma  # noqa: F401  before torch: it sets how torch allocates

# isort: split
import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from contestants import Contestant, Data
from timing import PeakMemory, command_parser, count, in_turn, output_file
from tqdm import tqdm
from where_time_goes import profile, profile_tables

from recbole_sigma.config.values import parse_overrides
from recbole_sigma.data import create_dataset
from recbole_sigma.environment import device_name, versions
from recbole_sigma.errors import UserError
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.training.allocator import keep_freed_memory

MODELS = "SIGMA,Mamba4Rec,ECHO,RecMamba,LinRec,GRU4Rec,SASRec,BERT4Rec,FEARec,recbole:SASRec"
RELEASED_SIGMA, GOAL = "released:SIGMA", 1 / 3  # our SIGMA is to take at most a third of the released design's time


def main() -> int:
    """Measure, print, write. Returns the exit status: 2 for a mistake of the user."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if not args.plain_malloc:
        keep_freed_memory()
    try:
        backend = active_backend(args.device)  # fails before minutes are spent on data
        own = {"data_path": args.data_path, "use_gpu": args.device == "cuda", "train_batch_size": args.batch}
        data = Data(args.dataset, {**own, "show_progress": False, **args.settings})
        facts = conditions(args, backend, data)
        if args.profile:
            ratio = {} if ":" in args.profile else args.length_ratio[0]
            results = profile(Contestant(args.profile, data, **ratio), args.steps, args.warm_up)
            text = profile_tables(results)
        else:
            costs = race(args, data)
            results = {"contestants": costs, "rival": args.rival, "goal": GOAL}
            text = report(costs, args)
            if args.rival.startswith("recbole:") and args.device == "cpu" and not args.plain_malloc:
                text += f"\nwith the allocator as it is:\n{measured_alone(args)}"
    except (UserError, ValueError, CudaExtensionError) as error:
        print(f"epoch.py: {error}", file=sys.stderr)
        return 2
    packages = (f"{name} {facts['versions'][name]}" for name in ("torch", "mamba-ssm") if name in facts["versions"])
    print(
        f"{args.dataset}, batch {args.batch}, {facts['device']}, {args.threads} threads, {', '.join(packages)}\n{text}"
    )
    if args.out:
        args.out.write_text(json.dumps({**facts, **results}, indent=1) + "\n", encoding="utf-8")
    return 0


def parse_args() -> argparse.Namespace:
    """The options of this script, and as `settings` everything else."""
    parser = command_parser(
        __doc__, epilog="Any other --SETTING=VALUE is a setting of all models, such as --MAX_ITEM_LIST_LENGTH=200."
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--data_path", default="dataset/", help="directory of the data sets")
    parser.add_argument("--dataset", default="ml-100k", help="name of the data set; RecBole contains ml-100k")
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS, help="what to measure")
    parser.add_argument("--rival", default="recbole:SASRec", metavar="MODEL", help="the one of them to compare with")
    parser.add_argument("--length_ratio", type=length_ratios, default=[{}], help="values for our models: 1.25,2,100")
    parser.add_argument("--batch", type=count, default=2048, help="train_batch_size")
    parser.add_argument("--rounds", type=count, default=5, help="rounds over all models")
    parser.add_argument("--steps", type=count, default=10, help="steps of each model in a round")
    parser.add_argument("--warm_up", type=count, default=5, help="steps of each model before the first round")
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs of each model, after one not counted")
    parser.add_argument("--profile", metavar="MODEL", help="show where the time of this model goes, instead of a race")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default_device, help="where to measure")
    parser.add_argument("--plain_malloc", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="write the figures to this file")
    args, rest = parser.parse_known_args()
    args.settings = parse_overrides(rest)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device=cpu tries the script")
    return args


def length_ratios(text: str) -> list[dict[str, float]]:
    """An option's value that is a list of numbers, as settings."""
    return [{"length_ratio": float(number)} for number in text.split(",")]


def race(args: argparse.Namespace, data: Data) -> list[dict[str, Any]]:
    """Measure steps and inference, then memory, then whole epochs, of all models; of ours once per length_ratio.

    Seconds are those of one step, one batch of inference, one whole epoch; what was not measured is None or [].
    """
    plan = [(name, ratio) for name in args.models for ratio in ([{}] if ":" in name else args.length_ratio)]
    racing = [Contestant(name, data, **ratio) for name, ratio in tqdm(plan, desc="data", disable=None)]
    works = {}
    for each in racing:
        each.train(args.warm_up)
        each.infer(args.warm_up)
        works[each, "train"] = partial(each.train, args.steps)
        works[each, "infer"] = partial(each.infer, args.steps)
    seconds = in_turn(works, args.rounds, warm_up=0)
    costs: list[dict[str, Any]] = [
        {
            "label": each.label,
            "n_parameters": each.n_parameters,
            "steps_per_epoch": len(each.loader),
            "step_seconds": [total / args.steps for total in seconds[each, "train"]],
            "inference_seconds": [total / args.steps for total in seconds[each, "infer"]],
            "training_mb": peak_mb(each, partial(each.train, args.steps)),
            "inference_mb": peak_mb(each, each.infer),
            "epoch_seconds": [],
        }
        for each in racing
    ]
    for number in tqdm(range(args.epochs + 1 if args.epochs else 0), desc="epochs", disable=None):
        for each, cost in zip(racing, costs, strict=True):
            taken = each.epoch()
            if number:  # in the first epoch, kernels are chosen for batches of new sizes
                cost["epoch_seconds"].append(taken)
    return costs


def measured_alone(args: argparse.Namespace) -> str:
    """The rival's row from another process, in which the allocator returns freed memory, as it does in RecBole."""
    own = [each for each in sys.argv[1:] if not each.startswith(("--models", "--out", "--epochs", "--length_ratio"))]
    command = [sys.executable, __file__, *own, f"--models={args.rival}", "--plain_malloc"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return next(line for line in printed.splitlines() if line.startswith(f"| {args.rival}"))


def peak_mb(contestant: Contestant, work: Callable[[], None]) -> float | None:
    """The most that torch allocated for one contestant, without the models of the others; None on CPU."""
    if contestant.device.type != "cuda":
        return None
    held = contestant.held_bytes()
    memory = PeakMemory(contestant.device)
    work()
    return held / 1e6 + memory.taken_mb()


def compare(costs: list[dict[str, Any]], rival: str) -> pd.DataFrame:
    """A row of the table per contestant: medians, and ratios to the rival."""
    frame = pd.DataFrame(costs).set_index("label")
    epoch = frame.step_seconds.map(np.median) * frame.steps_per_epoch
    whole = frame.epoch_seconds.map(lambda seconds: np.median(seconds) if seconds else math.nan)
    columns = {
        "s per epoch": epoch, f"of {rival}": epoch / epoch.get(rival, math.nan),
        "whole epochs, s": whole, "of it": whole / whole.get(rival, math.nan),
        "training, MB": frame.training_mb, "inference, MB": frame.inference_mb,
        "inference, ms per batch": 1000 * frame.inference_seconds.map(np.median),
    }  # fmt: skip
    return pd.DataFrame(columns, dtype=float)


def report(costs: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table; against SIGMA's released design also whether our SIGMA reaches GOAL, by whole epochs if measured."""
    table = compare(costs, args.rival)
    formats = ("", ".2f", ".3f", ".2f", ".3f", ".0f", ".0f", ".2f")
    lines = [
        f"{args.rounds} rounds of {args.steps} steps of each model, in turn; medians\n",
        table.astype(object).where(table.notna(), None).to_markdown(floatfmt=formats, missingval="-") + "\n",
    ]
    ratios = table["of it"].fillna(table[f"of {args.rival}"])
    for label, ratio in ratios.items() if args.rival == RELEASED_SIGMA else ():
        if label.partition(",")[0] == "SIGMA":
            lines.append(f"{label}: {ratio:.3f} of {args.rival}; at most 1/3: {'yes' if ratio <= GOAL else 'no'}")
    if args.device == "cpu" and any(label.startswith("released:") for label in table.index):
        lines.append("(on CPU, without mamba-ssm's block: for released designs this is no result)")
    return "\n".join(lines)


def conditions(args: argparse.Namespace, backend: str, data: Data) -> dict[str, Any]:
    """What the figures depend on: command, machine, versions, settings, data."""
    cuda, dataset = args.device == "cuda", create_dataset(data.config("SIGMA"))
    return {
        "command": shlex.join(["python", "benchmarks/epoch.py", *sys.argv[1:]]),
        "device": device_name(torch.device(args.device)),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "backend": {"ours": backend, "released": "mamba_ssm.Mamba" if cuda else "our block, not mamba-ssm"},
        "versions": versions() | versions(["triton"]),
        "settings": {"train_batch_size": args.batch, **args.settings},
        "measured": {name: getattr(args, name) for name in ("rounds", "steps", "warm_up", "epochs")},
        "data": {"name": args.dataset, **dataset.statistics(), "sha256": dataset.checksum()},
    }


if __name__ == "__main__":
    sys.exit(main())
