"""Runs on other splits than leave-one-out: nothing to validate on, nothing to test, several samples per user."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_sigma import cli
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.experiment.search import tune
from recbole_sigma.quick_start import resume, run
from recbole_sigma.report.case_study import case_study
from recbole_sigma.report.render import render, report_of
from recbole_sigma.report.table import table_of
from recbole_sigma.runs.reader import RecordedRun, read_runs
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.checkpoint import Checkpoint
from tests.helpers.models import refused
from tests.helpers.runs import ON_CPU, stopping

Start = Callable[..., RunResult]
RATIO = {"split": {"RS": [0.4, 0.2, 0.4]}}
RECBOLES_METRICS = ["Recall", "MRR", "NDCG", "Hit", "Precision"]


@pytest.fixture
def start(write_inter: Any, tmp_path: Path) -> Start:
    """`start(model, setting=value, ...)`: a run on 9 users with 10 interactions each, of 13 items."""
    write_inter([(f"u{n % 9}", f"i{n * n % 13}", n) for n in range(90)])

    def with_settings(model: str = "GRU4Rec", **settings: Any) -> RunResult:
        given = {**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 3}
        small = {"embedding_size": 8, "hidden_size": 8} if model == "GRU4Rec" else {}
        return run(model, "tiny", settings={**given, **small, **settings})

    return with_settings


def recorded(result: RunResult) -> RecordedRun:
    return read_runs([result.folder])[0]


@pytest.mark.parametrize(
    "eval_args", [{"split": {"LS": "test_only"}}, {"split": {"RS": [0.8, 0, 0.2]}}, {"split": {"time": 70}}]
)
def test_without_validation_all_epochs_are_trained_and_the_last_one_counts(start, monkeypatch, eval_args):
    monkeypatch.setattr(Checkpoint, "on_epoch_end", stopping(2))
    with pytest.raises(Interrupted) as stopped:
        start(eval_args=eval_args, stopping_step=0)
    monkeypatch.undo()
    resumed = resume(Path(str(stopped.value.folder)))
    whole = start(eval_args=eval_args, stopping_step=0)
    assert resumed.best_epoch == whole.best_epoch == 2 and resumed.valid == whole.valid == {}
    assert resumed.test == whole.test and set(whole.test) == {"hit@10", "ndcg@10", "mrr@10"}
    result = json.loads((whole.folder / "result.json").read_text())
    assert result["empty_splits"] == ["valid"] and result["protocol"]["selection"] == "last epoch, no validation"
    assert not (whole.folder / "ranks-valid.npz").exists() and result["eval_seconds"] >= 0
    table = table_of([recorded(whole)])
    assert table.cell("GRU4Rec", "valid", "hit") is None and table.cell("GRU4Rec", "test", "hit").mean > 0
    for form in ("md", "html", "csv", "tex"):
        assert "GRU4Rec" in render(report_of([recorded(whole)], bounds=[5]), form)
    assert resume(whole.folder).test == whole.test


def test_without_test_a_run_is_complete_with_its_validation(start, capsys):
    done = start(eval_args={"split": {"LS": "valid_only"}})
    assert done.test == {} and done.valid["hit@10"] > 0 and resume(done.folder).test == {}
    result = json.loads((done.folder / "result.json").read_text())
    assert "trial" not in result and result["empty_splits"] == ["test"]
    assert cli.main(["report", str(done.folder)]) == 0
    assert "GRU4Rec" in capsys.readouterr().out
    for split in ("valid", "test"):  # an empty one that should not be is damage
        (done.folder / "result.json").write_text(json.dumps({**result, split: {}, "empty_splits": []}))
        with refused("result.json"):
            _ = recorded(done).result


@pytest.mark.parametrize("eval_args", [RATIO, {**RATIO, "group_by": "none"}, {"split": {"time": [50, 70]}}])
def test_a_user_with_several_test_samples_has_a_rank_for_each(start, eval_args):
    done = start(eval_args=eval_args, metrics=RECBOLES_METRICS, topk=[2, 10], valid_metric="Recall@2")
    assert list(done.test) == [f"{name}@{k}" for name in ("hit", "ndcg", "mrr", "recall", "precision") for k in (2, 10)]
    assert done.test["recall@2"] == done.test["hit@2"] == 2 * done.test["precision@2"]
    saved = Ranks.load(done.folder / "ranks-test.npz")
    read = recorded(done).ranks("test")
    assert len(np.unique(saved.user)) < len(saved.user) == len(read.user)
    keys = list(zip(read.user, read.history_length, strict=True))
    assert keys == sorted(set(keys)) and sorted(read.rank) == sorted(saved.rank)
    assert np.mean(read.rank <= 10) == pytest.approx(done.test["hit@10"])
    last = max(read.history_length[read.user == "u3"])
    study = case_study([recorded(done)], "u3")
    at = (read.user == "u3") & (read.history_length == last)
    assert study.history_length == last and study.lists[0].target_rank == read.rank[at][0]


def test_significance_counts_a_user_with_several_samples_once(start, tmp_path):
    for model in ("Pop", "GRU4Rec"):
        start(model, eval_args=RATIO)
    runs = read_runs([tmp_path / "saved"])
    table = table_of(runs, k=3, bounds=[5, 8])
    (other, test), *_ = table.significance["ndcg"].users.items()
    assert test.n == 9
    gains = {}
    for run_ in runs:
        ranks = run_.ranks("test")
        gain = np.where(ranks.rank <= 3, 1 / np.log2(ranks.rank + 1), 0)
        gains[run_.label] = np.array([gain[ranks.user == user].mean() for user in sorted({*ranks.user})])
    best = table.significance["ndcg"].best
    assert test.difference == pytest.approx((gains[best] - gains[other]).mean())
    text = render(report_of(runs, k=3, bounds=[5, 8]), "md")
    assert "Target groups on test" in text and "User groups on test" in text


def test_groups_by_target_add_up_to_all_samples_and_count_training_only(start):
    done = start("Pop", eval_args={"split": {"LS": "valid_and_test"}})
    ranks = recorded(done).ranks("test")
    assert ranks.target_frequency is not None
    training = [f"i{n * n % 13}" for n in range(72)]  # of each user all but the last two of ten
    assert ranks.target_frequency.tolist() == [training.count(item) for item in ranks.target]
    table = table_of([recorded(done)], bounds=[5])
    counts = {by: sum(group.count for group in table.groups if group.by == by) for by in ("history", "target")}
    assert counts == {"history": 9, "target": 9}
    without = {name: array for name, array in ranks.arrays().items() if name != "target_frequency"}
    np.savez(done.folder / "ranks-test.npz", **without)  # as runs of before have it
    assert {group.by for group in table_of([recorded(done)], bounds=[5]).groups} == {"history"}


def test_sampled_metrics_say_so_repeat_by_seed_and_never_share_a_table_with_full_ranking(start, tmp_path):
    one, two = (start("Pop", eval_args={"mode": "uni5"}) for _ in range(2))
    full = start("Pop")
    assert (one.valid, one.test) == (two.valid, two.test) and one.test["mrr@10"] > full.test["mrr@10"]
    protocol = recorded(one).result["protocol"]
    assert "5 items" in protocol["ranking"] and recorded(full).result["protocol"]["ranking"].startswith("all items")
    assert "do not rank models reliably" in render(report_of([recorded(one)]), "md")
    with pytest.raises(UserError, match="do not belong in one table: ranking is"):
        table_of([recorded(one), recorded(full)])
    mixed = start("Pop", eval_args={"mode": {"valid": "pop4", "test": "full"}})
    assert "valid: 4 items drawn by popularity" in recorded(mixed).result["protocol"]["ranking"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"eval_args": {"split": {"LS": "test_only"}}}, ["no validation"]),
     ({"metrics": ["GiniIndex"], "valid_metric": "GiniIndex@10"}, ["valid_metric", "GiniIndex@10"])],
)  # fmt: skip
def test_a_sweep_that_could_not_choose_is_refused(start, tmp_path, settings, named):
    (tmp_path / "hyper.test").write_text("learning_rate choice [0.01,0.001]\n")
    given = {**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
    with refused(*named):
        tune("GRU4Rec", "tiny", tmp_path / "hyper.test", settings={**given, **settings})


def test_the_smallest_value_is_the_best_of_a_metric_of_which_less_is_better(start):
    done = start("GRU4Rec", metrics=["GiniIndex", "Hit"], valid_metric="GiniIndex@5", topk=[5], learning_rate=0.05)
    curve = [row["giniindex@5"] for row in recorded(done).curve]
    assert done.valid["giniindex@5"] == min(curve) and done.best_epoch == int(np.argmin(curve))
