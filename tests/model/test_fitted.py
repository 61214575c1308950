"""Pop and ItemKNN by hand, and in runs and comparisons."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_sigma import cli, full_sort_scores
from recbole_sigma.data.item_info import item_info
from recbole_sigma.data.preparation import load
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.quick_start import resume, run
from recbole_sigma.registry import build_model
from recbole_sigma.runs.reader import load_run, read_runs
from recbole_sigma.training.checkpoint import Checkpoint
from tests.helpers.runs import ON_CPU, options, stopping

#                       training           valid  test
HISTORIES = {"u": "abcc" + "d" + "e", "v": "abd" + "b" + "f", "w": "ab" + "g" + "a"}
ROWS = [(user, item, time) for user, items in HISTORIES.items() for time, item in enumerate(items)]


def fitted(read_tiny: Any, name: str, **settings: Any) -> tuple[Any, dict[str, int]]:
    config = read_tiny(name, **settings).config
    data = load(config)
    model: Any = build_model(config, data.train.dataset)
    model.fit(data.train.dataset.inter_feat)
    return model, data.dataset.field2token_id["item_id"]


def test_pop_counts_the_interactions_of_training(write_inter, read_tiny):
    write_inter(ROWS)
    model, number = fitted(read_tiny, "Pop")
    assert [int(model.counts[number[item]]) for item in "abcdefg"] == [3, 3, 2, 1, 0, 0, 0]


def test_recorded_popularity_is_that_of_training_alone(write_inter, read_tiny):
    write_inter([*ROWS, ("x", "a", 4), ("x", "b", 5)])  # of x, training has nothing
    by_time = {"eval_args": {"split": {"time": [2.5, 3.5]}}}
    counts = fitted(read_tiny, "Pop", **by_time)[0].counts
    assert item_info(load(read_tiny("Pop", **by_time).config))["counts"] == counts.int().tolist()


@pytest.mark.parametrize("shrink", [0.0, 2.0])
def test_itemknn_scores_the_neighbours_of_the_last_item_by_their_common_users(write_inter, read_tiny, shrink):
    write_inter(ROWS)
    model, number = fitted(read_tiny, "ItemKNN", shrink=shrink, k=2)
    users = {"a": "uvw", "b": "uvw", "c": "u", "d": "v"}

    def similarity(one: str, other: str) -> float:
        both = {*users[one]} & {*users[other]}
        return len(both) / (np.sqrt(len(users[one]) * len(users[other])) + shrink)

    batch = {"item_id_list": torch.tensor([[number["c"], number["a"], 0], [number["d"], 0, 0], [number["g"], 0, 0]])}
    batch |= {"item_length": torch.tensor([2, 1, 1]), "item_id": torch.tensor([number["b"], number["a"], 1])}
    scores = model.full_sort_predict(batch)
    expected = torch.zeros(3, len(number))
    expected[0, number["b"]] = similarity("a", "b")
    expected[0, number["c"]] = similarity("a", "c")  # as similar as d, whose number is larger
    expected[1, number["a"]], expected[1, number["b"]] = similarity("d", "a"), similarity("d", "b")
    assert torch.allclose(scores, expected)
    assert torch.equal(model.predict(batch), scores[torch.arange(3), batch["item_id"]])
    with pytest.raises(UserError, match="ItemKNN"):
        model.calculate_loss(batch)


def test_itemknn_is_the_dense_computation_in_blocks(write_inter, read_tiny):
    random = np.random.default_rng(0)
    write_inter([(f"u{n % 50}", f"i{item}", n) for n, item in enumerate(random.zipf(1.3, 3000) % 400)])
    model, _ = fitted(read_tiny, "ItemKNN", k=10)
    train = load(read_tiny("ItemKNN").config).train.dataset.inter_feat
    has = torch.zeros(51, model.n_items)
    at = train.interactions()
    has[train.flat.columns["user_id"][at], train.flat.columns["item_id"][at]] = 1
    dense = (has.T @ has) / (has.sum(0).sqrt()[:, None] * has.sum(0).sqrt()).clamp(min=1e-9)
    dense.fill_diagonal_(0)
    assert torch.allclose(model.similarities, dense.topk(10).values, atol=1e-6)
    assert torch.allclose(dense.gather(1, model.neighbours.long()), model.similarities, atol=1e-6)


@pytest.mark.parametrize("name", ["Pop", "ItemKNN"])
def test_a_run_is_one_epoch_that_is_recorded_loaded_and_resumed(write_inter, tmp_path, monkeypatch, name):
    write_inter(ROWS)
    settings = {**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 7}
    done = run(name, "tiny", settings={**settings, "train_mode": "sequence"})
    result = json.loads((done.folder / "result.json").read_text())
    assert (result["epochs"], result["best_epoch"], result["n_parameters"]) == (1, 0, 0)
    loaded = load_run(done.folder, use_gpu=False)
    (batch, *_), *_ = loaded.test
    assert loaded.model.full_sort_predict(batch).max() > 0
    for epochs in (0, 1):
        monkeypatch.setattr(Checkpoint, "on_epoch_end", stopping(epochs))
        with pytest.raises(Interrupted) as stopped:
            run(name, "tiny", settings=settings)
        monkeypatch.undo()
        again = resume(Path(str(stopped.value.folder)))
        assert (again.valid, again.test) == (done.valid, done.test)


def test_baselines_stand_beside_models_in_a_comparison(write_inter, tmp_path, capsys):
    write_inter([(f"u{n % 8}", f"i{n * n % 11}", n) for n in range(80)])
    for name in ("Pop", "GRU4Rec"):  # `compare --models=ItemKNN` below trains in a process of its own, which takes long
        run(name, "tiny", settings={**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "epochs": 1})
    assert cli.main(["report", *(str(run.folder) for run in read_runs([tmp_path]))]) == 0
    shown = capsys.readouterr().out
    assert "Pop" in shown and "GRU4Rec" in shown
    given = {"models": "ItemKNN", "datasets": "tiny", "data_path": tmp_path, "checkpoint_dir": tmp_path / "saved"}
    assert cli.main(["compare", *options(**given, metrics="[NDCG,ItemCoverage]", use_gpu=False)]) == 0
    shown = capsys.readouterr().out
    assert "ItemKNN" in shown and "ItemCoverage@10" in shown


def test_the_scores_of_pop_can_be_masked(write_inter, tmp_path):
    write_inter([(f"u{n % 8}", f"i{n * n % 11}", n) for n in range(80)])
    settings = {**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "mask_seen": True}
    loaded = load_run(run("Pop", "tiny", settings={**settings, "metrics": ["NDCG", "ItemCoverage"]}).folder)
    scores = full_sort_scores([1, 2], loaded.model, loaded.test)
    assert scores[:, 0].isneginf().all() and torch.equal(scores[0, 1:], loaded.model.counts[1:])
