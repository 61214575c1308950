"""What an item costs in a live session, and what reading the history again costs: one core, no GPU.

    python benchmarks/sessions.py [--items=12101] [--length=2000] [MODEL ...]

Prints, per model: microseconds of `step` (Session.append without the look-up of the item's number), milliseconds of a
pass over the whole history, their ratio, and milliseconds of the list, Session.top_k(10). Medians; untrained weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from recbole_sigma.config.config import Config
from recbole_sigma.data.items import Items
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.registry import build_model
from recbole_sigma.runs.reader import LoadedModel

MODELS = ["Mamba4Rec", "RecMamba", "EMARec", "GRU4Rec", "SIGMA"]


def median(function: Callable[[], Any], repeat: int) -> float:
    """Seconds of one call."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--length", type=int, default=2_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("model      append us   pass ms   ratio   top_k ms")
    for name in args.models:
        settings = {"use_gpu": False, "MAX_ITEM_LIST_LENGTH": args.length}
        config = Config(name, "ml-100k", settings=settings, need_data=False)
        ids = ["[PAD]", *map(str, range(1, args.items + 1))]
        model: Any = build_model(config, Items(args.items)).eval()
        recommender = Recommender(LoadedModel(config, model, ids, [], {}))
        history = torch.randint(1, args.items + 1, (1, args.length))
        session = recommender.session(history[0].tolist())
        append = median(lambda: session.append("7"), 300)  # noqa: B023 - called here
        lengths = torch.tensor([args.length])
        with torch.inference_mode():
            whole = median(lambda: model(history, lengths), 15)  # noqa: B023
        top_k = median(lambda: session.top_k(10), 50)  # noqa: B023
        print(f"{name:10}{append * 1e6:9.0f} {whole * 1e3:9.1f} {whole / append:7.0f} {top_k * 1e3:10.2f}")


if __name__ == "__main__":
    main()
