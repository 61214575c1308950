"""RecTools' SASRec, epoch by epoch: seconds, and validation HR@10 and NDCG@10 under our protocol.

    python -m venv rectools && rectools/bin/pip install "rectools[torch]"
    rectools/bin/python benchmarks/rectools_sasrec.py data/amazon-beauty/amazon-beauty.inter --epochs=20

Runs in an environment of its own: RecTools needs other versions than we do. The protocol is ours: the last item of each
user is left out for test and the one before it for validation; all items are ranked, seen ones too; users of fewer than
4 interactions are only trained on. The rival of `recbole-sigma train --model=SASRec --train_mode=sequence`, whose
metrics.csv has the same figures per epoch. Figures go to standard output as CSV.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inter", help="an atomic file with user_id, item_id and timestamp")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--goal", type=float, default=0.045, help="validation NDCG@10 at which to stop")
    parser.add_argument("--batch", type=int, default=128, help="users per batch, RecTools' default")
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, target = split(args.inter)
    dataset = Dataset.construct(train)
    model = SASRecModel(
        n_blocks=2, n_heads=2, n_factors=64, session_max_len=50, loss="softmax", dropout_rate=args.dropout, lr=args.lr,
        batch_size=args.batch, epochs=1, deterministic=False,
    )  # fmt: skip
    print("epoch,seconds,total_seconds,hit@10,ndcg@10", flush=True)
    total = 0.0
    for epoch in range(args.epochs):
        start = time.perf_counter()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        seconds = time.perf_counter() - start
        total += seconds
        hit, ndcg = evaluate(model, dataset, target)
        print(f"{epoch},{seconds:.2f},{total:.2f},{hit:.6f},{ndcg:.6f}", flush=True)
        if ndcg >= args.goal:
            break


def split(path: str) -> tuple[pd.DataFrame, pd.Series]:
    """Interactions for training, with RecTools' column names, and the validation item of each evaluated user."""
    frame = pd.read_csv(path, sep="\t", dtype=str)
    frame.columns = [name.partition(":")[0] for name in frame.columns]
    time_order = frame.assign(time=frame.timestamp.astype(float)).sort_values(["user_id", "time"], kind="stable")
    left = time_order.groupby("user_id").cumcount(ascending=False)
    count = time_order.groupby("user_id")["item_id"].transform("size")
    evaluated = (count >= 4) & (left == 1)
    target = time_order[evaluated].set_index("user_id")["item_id"]
    train = time_order[(left >= 2) | (count == 2) & (left == 1)]
    # RecTools sorts by time and breaks ties in its own way: ranks keep the order
    times = pd.Timestamp("2000-01-01") + pd.to_timedelta(train.groupby("user_id").cumcount(), unit="s")
    columns = {Columns.User: train.user_id, Columns.Item: train.item_id, Columns.Weight: 1, Columns.Datetime: times}
    return pd.DataFrame(columns), target


def evaluate(model: SASRecModel, dataset: Dataset, target: pd.Series) -> tuple[float, float]:
    """HR@10 and NDCG@10 over the users of `target`; a user without a training history counts as a miss."""
    users = target.index[target.index.isin(dataset.user_id_map.external_ids)]
    lists = model.recommend(users=users.to_numpy(), dataset=dataset, k=10, filter_viewed=False)
    rank = lists[lists[Columns.Item] == lists[Columns.User].map(target)][Columns.Rank].to_numpy()
    return len(rank) / len(target), float((1 / np.log2(rank + 1)).sum() / len(target))


if __name__ == "__main__":
    main()
