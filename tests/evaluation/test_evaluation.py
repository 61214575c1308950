"""Ranks and metrics against RecBole's evaluator, and by hand."""

from collections import Counter
from operator import eq, gt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.evaluator import Collector, Evaluator

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import (
    LIST_METRICS,
    RANK_METRICS,
    metric_title,
    metrics_of_lists,
    metrics_of_ranks,
)
from recbole_sigma.evaluation.ranks import Ranks, masked_ranks, target_ranks, top_items


def test_rank_counts_better_items_and_leaves_padding_out():
    scores = torch.tensor([[9.0, 0.1, 0.5, 0.3], [9.0, 4.0, 2.0, 3.0]])
    assert target_ranks(scores, torch.tensor([3, 1])).tolist() == [2.0, 1.0]


@given(st.integers(2, 30), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_the_rank_is_the_mean_over_all_orders_of_equal_scores(n_items: int, seed: int):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, n_items + 1).astype(float)
    target = int(random.integers(1, n_items + 1))
    places = []
    for sign in (1, -1):  # over these two orders, equal scores have the mean place that they have over all
        order = sorted(range(1, n_items + 1), key=lambda item: (-scores[item], sign * item))
        places.append(order.index(target) + 1)
    assert target_ranks(torch.tensor(scores)[None], torch.tensor([target])).item() == np.mean(places)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error_and_not_a_hit(wrong: float):
    scores = torch.rand(3, 5)
    scores[1, 2] = wrong
    with pytest.raises(FloatingPointError, match=r"row 1 .* NaN or infinite"):
        target_ranks(scores, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("topk", [[10], [1, 5, 20]])
def test_metrics_equal_those_of_recboles_evaluator(sample_config: Any, topk: list[int]):
    config = sample_config(topk=topk, valid_metric=f"NDCG@{topk[0]}")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, 60, generator=generator)
    targets = torch.randint(1, 60, (500,), generator=generator)
    ours = metrics_of_ranks(target_ranks(scores, targets).numpy(), topk)

    collector, masked = Collector(config), scores.clone()
    masked[:, 0] = -np.inf
    collector.eval_batch_collect(masked, None, torch.arange(500), targets)
    theirs = Evaluator(config).evaluate(collector.get_data_struct())
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert round(ours[name], 4) == pytest.approx(float(value), abs=1e-9), name


@pytest.mark.parametrize("tail_ratio", [None, 0.3, 1, 12])
@pytest.mark.parametrize("n_candidates", [None, 60])
def test_all_metrics_equal_those_of_recboles_collector_and_evaluator(sample_config: Any, tail_ratio, n_candidates):
    names = [*RANK_METRICS, *LIST_METRICS]
    config = sample_config(metrics=names, topk=[5, 10, 20])
    config["metric_decimal_place"] = 15  # of RecBole's evaluator
    config["tail_ratio"] = tail_ratio
    random = np.random.default_rng(0)
    scores = torch.rand(300, 60, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(random.integers(1, 60, 300))
    counts = random.integers(0, 25, 60) * (np.arange(60) > 0)
    candidates, allowed = None, torch.ones(300, 60, dtype=torch.bool)
    if n_candidates:
        candidates = torch.from_numpy(random.integers(1, 60, (300, n_candidates)))
        candidates = torch.where(candidates == targets[:, None], 1 + candidates % 59, candidates)
        allowed = torch.zeros_like(allowed).scatter_(1, candidates, True).scatter_(1, targets[:, None], True)
    allowed[:, 0] = False
    collector = Collector(config)
    collector.data_struct.set("data.num_items", 60)
    collector.data_struct.set("data.count_items", Counter({n: int(count) for n, count in enumerate(counts) if count}))
    collector.eval_batch_collect(scores.masked_fill(~allowed, -np.inf), None, torch.arange(300), targets)
    theirs = Evaluator(config).evaluate(collector.get_data_struct())

    ours = metrics_of_ranks(target_ranks(scores, targets, candidates).numpy(), [5, 10, 20], RANK_METRICS)
    lists = top_items(scores, 20, targets, candidates).numpy()
    ours |= metrics_of_lists(lists, [5, 10, 20], LIST_METRICS, counts, tail_ratio or 0.1)
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-12)


def test_a_candidate_counts_once_and_equal_scores_count_half():
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0, 2.0, 5.0]])
    for candidates, rank in (([3, 3, 3], 2.0), ([4, 1, 4], 1.5), ([1, 1], 1.0), ([5, 3, 4], 3.5)):
        assert target_ranks(scores, torch.tensor([2]), torch.tensor([candidates])).tolist() == [rank]
    with pytest.raises(FloatingPointError):
        target_ranks(scores / 0, torch.tensor([2]), torch.tensor([[3]]))


@given(st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_masked_ranks_are_those_among_the_items_that_the_user_has_not_seen(n_items: int, seed: int):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, n_items + 1).astype(float)
    history = random.integers(1, n_items + 1, random.integers(1, 6))
    target = int(random.integers(1, n_items + 1))
    others = [item for item in range(1, n_items + 1) if item not in history and item != target]
    better, equal = (sum(compare(scores[item], scores[target]) for item in others) for compare in (gt, eq))
    expected = n_items if target in history else 1 + better + equal / 2

    rows = torch.tensor(scores).repeat(2, 1), torch.tensor([target, target])
    seen = torch.from_numpy(np.stack([[*history, 0, 0], [0, *history[::-1], 0]]))
    assert masked_ranks(target_ranks(*rows), *rows, seen).tolist() == [expected, expected]


def test_metrics_by_hand():
    metrics = metrics_of_ranks(np.array([1.0, 3.0, 11.0, 10.0]), [10])
    expected = {"hit@10": 3, "ndcg@10": 1 + 0.5 + 0 + 1 / np.log2(11), "mrr@10": 1 + 1 / 3 + 0 + 1 / 10}
    assert metrics == pytest.approx({name: total / 4 for name, total in expected.items()})
    assert [metric_title(name) for name in (*metrics, "hit")] == ["HR@10", "NDCG@10", "MRR@10", "HR"]


RANKS = {"user": ["u"], "target": ["i"], "history_length": [1], "rank": [1.0]}


@pytest.mark.parametrize(
    "wrong",
    [
        None, b"nothing", {"user": np.array([{"a": 1}], dtype=object)}, {"rank": [0.5]}, {"rank": [np.nan]},
        {"rank": [1]}, {"rank": [1.0, 2.0]}, {key: np.array(value)[:0] for key, value in RANKS.items()},
    ],
)  # fmt: skip
def test_a_file_that_holds_no_ranks_is_refused_by_name(tmp_path: Path, wrong: Any):
    path = tmp_path / "ranks-test.npz"
    np.savez(path, **RANKS)
    assert Ranks.load(path).rank.tolist() == [1]
    path.unlink()
    if isinstance(wrong, bytes):
        path.write_bytes(wrong)
    elif wrong is not None:
        np.savez(path, **{**RANKS, **wrong})
    with pytest.raises(UserError, match=r"ranks-test\.npz: not a file of ranks"):
        Ranks.load(path)
