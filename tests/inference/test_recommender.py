"""A run directory alone recommends what evaluation computes, for any histories; mistakes are named."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
import torch

from recbole_sigma import Recommender, full_sort_scores, full_sort_topk, run
from recbole_sigma.evaluation.ranks import Ranks, target_ranks
from recbole_sigma.model.mamba4rec import Mamba4Rec
from recbole_sigma.runs.files import read_json
from recbole_sigma.runs.reader import load_run
from tests.helpers.models import refused
from tests.helpers.runs import NINE, OUR_SIZE, SIZES, TINY, environment

SHORT = {**TINY, "epochs": 1}


class Mean(Mamba4Rec):
    """A user's own model: the mean of the items of a history."""

    def encode(self, hidden: Any, lengths: Any) -> Any:
        steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        return hidden.cumsum(1) / steps[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | type], Path]:
    """The run directory of a small model on ml-100k, trained once; its data set is not beside it."""
    saved, folders = tmp_path_factory.mktemp("saved"), dict[Any, Path]()

    def make(model: str | type) -> Path:
        if model not in folders:
            size = SIZES.get(str(model), OUR_SIZE)
            folders[model] = run(model, "ml-100k", settings={**SHORT, **size, "checkpoint_dir": str(saved)}).folder
        return folders[model]

    return make


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What our loggers say, although a run in this process has set them up."""
    monkeypatch.setattr(logging.getLogger("recbole_sigma"), "propagate", True)
    caplog.set_level(logging.WARNING, "recbole_sigma")
    return caplog


@pytest.fixture
def rec(folder: Callable[[str], Path]) -> Recommender:
    return Recommender.load(folder("Mamba4Rec"))


def histories_and_targets(folder: Path, **settings: Any) -> tuple[list[list[str]], torch.Tensor, Any]:
    """Raw item ids of every test user's history, not cut, and the targets, from the data set."""
    loaded = load_run(folder, **settings)
    data = loaded.test.dataset
    samples, names = data.inter_feat, data.field2id_token[data.iid_field].astype(str)
    items = samples.flat.columns[data.iid_field].numpy()
    lengths = data.history_lengths(np.arange(len(data)))
    rows = [names[items[stop - n : stop]].tolist() for stop, n in zip(samples.targets, lengths, strict=True)]
    return rows, torch.from_numpy(items[samples.targets]), loaded


@pytest.mark.parametrize("model", [*NINE, Mean], ids=str)
def test_every_test_user_gets_the_scores_of_evaluation(folder: Callable[[Any], Path], model: Any):
    path = folder(model)
    own = {} if isinstance(model, str) else {"model": model}
    rows, targets, loaded = histories_and_targets(path, **own)
    alone = Recommender.load(path, **own)
    numbers, _ = alone.numbers(rows, "error")
    scores, ranks = alone.scores(numbers), Ranks.load(path / "ranks-test.npz").rank
    assert len(rows) == len(ranks) > 100
    np.testing.assert_allclose(target_ranks(scores, targets), ranks, atol=1)  # rounding may swap two items
    assert np.mean(target_ranks(scores, targets).numpy() == ranks) > 0.98
    interaction, *_ = next(iter(loaded.test))
    with torch.no_grad():
        expected = loaded.model.full_sort_predict(interaction).view(len(interaction), -1)
    torch.testing.assert_close(scores[: len(expected), 1:], expected[:, 1:], atol=1e-5, rtol=1e-5)
    lists = alone.recommend(rows, k=5, exclude_seen=False)
    best = expected[:, 1:].topk(5).values
    torch.testing.assert_close(torch.tensor([[score for _, score in row] for row in lists[: len(best)]]), best)


@pytest.mark.skipif("RECBOLE_SIGMA_DATA" not in os.environ, reason="RECBOLE_SIGMA_DATA names a directory of real data")
def test_every_test_user_of_real_data_gets_the_ranks_of_evaluation(tmp_path: Path):
    settings = {**SHORT, "data_path": os.environ["RECBOLE_SIGMA_DATA"], "checkpoint_dir": str(tmp_path)}
    settings["user_inter_num_interval"] = "[0,inf)"
    folder = run("Mamba4Rec", "amazon-beauty", settings={**settings, **OUR_SIZE}).folder
    rows, targets, _ = histories_and_targets(folder)
    alone, ranks = Recommender.load(folder), Ranks.load(folder / "ranks-test.npz").rank
    for start in range(0, len(rows), 1000):
        part = slice(start, start + 1000)
        own = target_ranks(alone.scores(alone.numbers(rows[part], "error")[0]), targets[part])
        np.testing.assert_allclose(own, ranks[part], atol=2)


def test_a_recommender_needs_the_run_directory_alone(folder: Callable[[str], Path], tmp_path: Path):
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in ("config.yaml", "model.safetensors", "items.json", "item_info.json"):
        shutil.copy(folder("SIGMA") / name, alone)
    config = (alone / "config.yaml").read_text()
    (alone / "config.yaml").write_text(re.sub("(?m)^data_path: .*", "data_path: /nowhere", config))
    assert Recommender.load(alone).recommend([["50", 181]]) == Recommender.load(folder("SIGMA")).recommend(
        [["50", "181"]]
    )


def test_lists_are_the_best_items_that_were_not_seen(rec: Recommender):
    history = rec.items[:30]
    scores = dict(zip(rec.items, rec.score(history, rec.items), strict=True))
    unseen = sorted((item for item in rec.items if item not in history), key=lambda item: -scores[item])
    (best,) = rec.recommend([history], k=20)
    assert [item for item, _ in best] == unseen[:20] and [score for _, score in best] == [
        scores[item] for item, _ in best
    ]
    (few,) = rec.recommend([history], k=5, candidates=[*unseen[100:102], *history[:2]])
    assert {item for item, _ in few} == {*unseen[100:102]}
    (all_items,) = rec.recommend([history], k=10**6, exclude_seen=False)
    assert len(all_items) == len(rec.items)


def test_an_answer_does_not_depend_on_the_batch(rec: Recommender):
    random = np.random.default_rng(0)
    rows = [random.choice(rec.items, n).tolist() for n in random.integers(0, 30, 50)]
    together = rec.recommend(rows, k=3)
    assert together.popular == [row for row, items in enumerate(rows) if not items]
    for row, best in zip(rows, together, strict=True):
        (alone,) = rec.recommend([row], k=3)
        assert [score for _, score in alone] == pytest.approx([score for _, score in best], abs=1e-5)


def test_unknown_items_are_counted_and_skipped_or_refused(rec: Recommender, warned: pytest.LogCaptureFixture):
    lists = rec.recommend([["50", "no such item", "[PAD]", None], ["181"]], k=3)
    assert lists.unknown == 3 and lists.popular == [] and "3 item ids" in warned.text and "no such item" in warned.text
    assert lists == rec.recommend([["50"], ["181"]], k=3)
    with refused("181x", "unknown", "did you mean"):
        rec.recommend([["181x"]], on_unknown="error")
    with refused("181x"):
        rec.score(["50"], ["181x"])


def test_whole_numbers_with_a_point_are_the_ids_without(rec: Recommender):
    lists = rec.recommend([[50.0, 181.0], [np.float64(50)]], k=3)
    assert lists.unknown == 0 and lists == rec.recommend([["50", "181"], ["50"]], k=3)
    assert rec.number(50.0) == rec.number("50") and rec.number(50.5) == 0


def test_an_empty_history_gets_the_most_popular_items_of_training(rec: Recommender, warned: pytest.LogCaptureFixture):
    lists = rec.recommend([[], ["50"], ["unknown"]], k=4)
    counts = rec.counts.numpy()[1:]
    assert [count for _, count in lists[0]] == sorted(counts, reverse=True)[:4] and lists[0] == lists[2]
    assert lists.popular == [0, 2] and "most popular" in warned.text


def test_popularity_counts_neither_validation_nor_test_targets(folder: Callable[[str], Path]):
    rows, _, loaded = histories_and_targets(folder("Mamba4Rec"))
    data = loaded.test.dataset
    counts = dict.fromkeys(data.field2id_token[data.iid_field], 0)
    for row in rows:
        for item in row[:-1]:  # the last one of a test history is the target of validation
            counts[item] += 1
    assert read_json(folder("Mamba4Rec") / "item_info.json", dict)["counts"] == [*counts.values()]


@pytest.mark.parametrize("library", [pd, polars], ids=["pandas", "polars"])
def test_tables_go_in_and_come_out(rec: Recommender, library: Any):
    table = library.DataFrame(
        {"user_id": ["b", "a", "b", "a"], "item_id": ["50", "181", "1", "2"], "timestamp": [2.0, 1.0, 1.0, 3.0]}
    )
    result = rec.recommend(table, k=2)
    lists = rec.recommend([["1", "50"], ["181", "2"]], k=2)  # by time
    assert isinstance(result, library.DataFrame) and list(result.columns) == ["user_id", "item_id", "score", "rank"]
    assert list(result["user_id"]) == ["b", "b", "a", "a"] and list(result["rank"]) == [1, 2, 1, 2]
    assert list(zip(result["item_id"], result["score"], strict=True)) == [*lists[0], *lists[1]]
    with refused("item_id", "product"):
        rec.recommend(library.DataFrame({"user_id": ["a"], "product": ["50"]}))


def test_similar_items_are_the_nearest_embeddings(rec: Recommender):
    table = rec.item_embeddings()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit[rec.items.index("50")]
    nearest = [rec.items[number] for number in np.argsort(-cosines) if rec.items[number] != "50"]
    similar = rec.similar_items(50, k=3)
    assert [item for item, _ in similar] == nearest[:3] and all(score < 1 for _, score in similar)


@pytest.mark.parametrize("histories", [["50", "181"], "50", [1, 2], np.array([1, 2]), [None]], ids=str)
def test_one_history_instead_of_a_list_is_refused(rec: Recommender, histories: Any):
    with refused("[['A', 'B']]"):
        rec.recommend(histories)


def test_text_or_a_number_in_place_of_a_list_of_ids_is_refused(rec: Recommender):
    for ask in (
        lambda: rec.score("50", ["1"]), lambda: rec.score(["1"], "50"), lambda: rec.session("50"),
        lambda: rec.recommend([["1"]], candidates="50"), lambda: rec.recommend([["1"]], candidates=50),
    ):  # fmt: skip
        with refused("list of item ids", "50"):
            ask()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "10"])
def test_a_wrong_k_is_refused(rec: Recommender, k: Any):
    for ask in (lambda: rec.recommend([["50"]], k=k), lambda: rec.session(["50"]).top_k(k)):
        with refused("k must be", repr(k)):
            ask()
    assert rec.recommend([["50"]], k=np.int64(2)) == rec.recommend([["50"]], k=2)


def test_what_is_no_run_directory_is_refused(folder: Callable[[str], Path], tmp_path: Path):
    with refused("config.yaml", str(tmp_path)):
        Recommender.load(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder("Mamba4Rec"), damaged)
    (damaged / "items.json").write_text('["[PAD]", "a"]')
    with refused("item_info.json"):
        Recommender.load(damaged)
    (damaged / "item_info.json").unlink()
    with refused("model.safetensors"):
        Recommender.load(damaged)
    with refused("a run of Mamba4Rec, not of GRU4Rec"):
        Recommender.load(folder("Mamba4Rec"), model="GRU4Rec")
    for device in ("tpu", "cuda:x", "cuda"):
        with refused("device", device):
            Recommender.load(folder("Mamba4Rec"), device=device)


def test_the_code_of_a_models_name_in_a_file_is_not_imported(folder: Callable[[Any], Path], tmp_path: Path):
    foreign = tmp_path / "foreign"
    shutil.copytree(folder("Mamba4Rec"), foreign)
    (foreign / "config.yaml").write_text(
        (foreign / "config.yaml").read_text().replace("model: Mamba4Rec", "model: own.code:Model")
    )
    with refused("own.code:Model", "confirm"):
        Recommender.load(foreign)


def test_full_sort_as_in_recbole(folder: Callable[[str], Path]):
    from recbole.utils import case_study

    loaded = load_run(folder("Mamba4Rec"))
    data = loaded.test.dataset
    users = data.token2id(data.uid_field, data.field2id_token[data.uid_field][[5, 3, 9]])
    values, items = full_sort_topk(users, loaded.model, loaded.test, k=4)
    scores = full_sort_scores(users, loaded.model, loaded.test, device="cpu")
    expected = case_study.full_sort_scores(users, loaded.model, loaded.test, device=torch.device("cpu"))
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(values, scores.topk(4).values)
    assert items.shape == (3, 4) and not (items == 0).any()
    with refused("uid_series", "99999"):
        full_sort_topk([99999], loaded.model, loaded.test, k=4)


def test_loading_takes_under_two_seconds_on_top_of_torch(folder: Callable[[str], Path]):
    load = f"from recbole_sigma import Recommender; Recommender.load({str(folder('Mamba4Rec'))!r}, device='cpu')"
    code = f"import time, torch; t = time.perf_counter(); {load}; print(time.perf_counter() - t)"
    seconds = []
    while len(seconds) < 5 and (not seconds or min(seconds) > 2):  # the machine may be busy
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=environment()
        )
        seconds.append(float(done.stdout))
    assert min(seconds) < 3, seconds  # 1.6 s on an idle machine
