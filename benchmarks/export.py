"""Milliseconds of the processor for a list of 10 by our own code, onnxruntime and torch.export.

    python benchmarks/export.py [--items=12101] [--length=50] [MODEL ...]

On one core; medians with untrained weights. Time of the processor, because other processes disturb it little.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_sigma.config.config import Config
from recbole_sigma.data.items import Items
from recbole_sigma.inference.export import FILES, TopK, write_model
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.registry import build_model
from recbole_sigma.runs.reader import LoadedModel


def median(function: Callable[[], Any], repeat: int = 20) -> float:
    """Milliseconds of the processor that one call takes."""
    function()
    times = [time.process_time()]
    for _ in range(repeat):
        function()
        times.append(time.process_time())
    return statistics.median(np.diff(times) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["SIGMA", "Mamba4Rec", "RecMamba", "ECHO", "SASRec"])
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--length", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':10} {'batch':>5} {'ours':>8} {'onnx':>8} {'torch':>8}")
    for name in args.models:
        settings = {"use_gpu": False, "MAX_ITEM_LIST_LENGTH": args.length}
        config = Config(name, "ml-100k", settings=settings, need_data=False)
        ids = ["[PAD]", *map(str, range(1, args.items + 1))]
        recommender = Recommender(LoadedModel(config, build_model(config, Items(args.items)).eval(), ids, [], {}))
        network = TopK(recommender, 10, exclude_seen=True).eval()
        with tempfile.TemporaryDirectory() as folder:
            written = [write_model(network, Path(folder, file)) for file in FILES.values()]
        for batch in (1, 64):
            history = np.random.default_rng(0).integers(1, args.items + 1, (batch, args.length))
            texts = [[*map(str, row)] for row in history.tolist()]
            ways = [lambda: recommender.recommend(texts), *(lambda p=p: p(history) for p in written)]  # noqa: B023
            print(f"{name:10} {batch:5}", *(f"{median(way):8.2f}" for way in ways), flush=True)


if __name__ == "__main__":
    main()
