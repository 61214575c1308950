"""Milliseconds of a list of 10 by our own code, onnxruntime and torch.export: one core, untrained weights, medians.

python benchmarks/export.py [--items=12101] [--length=50] [MODEL ...]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sessions import median

from recbole_sigma.config.config import Config
from recbole_sigma.data.items import Items
from recbole_sigma.inference.export import FILES, TopK, write_model
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.registry import build_model
from recbole_sigma.runs.reader import LoadedModel


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
            seconds = [median(way, 20) for way in ways]
            print(f"{name:10} {batch:5}", *(f"{each * 1e3:8.2f}" for each in seconds))


if __name__ == "__main__":
    main()
