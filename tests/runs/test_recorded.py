"""Run directories are read as they are: labelled by what differs, checked, and never dropped."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs.reader import last_line, read_epochs, read_finished, read_runs
from tests.helpers.recorded_runs import CURVE, DATA, begin_run, write_run

RANKS = [1.0, 3.0, 12.0, 10.0]


def test_settings_that_differ_make_the_label_and_its_order(tmp_path: Path):
    for r in (10, 2, 5):
        write_run(tmp_path, "SIGMA", RANKS, settings={"r": r, "partial_flip": True})
    write_run(tmp_path, "SASRec", RANKS, settings={"n_heads": 4})
    runs = read_runs([tmp_path])
    assert [run.label for run in runs] == ["SASRec", "SIGMA r=2", "SIGMA r=5", "SIGMA r=10"]
    assert [dict(run.varied) for run in runs] == [{}, {"r": 2}, {"r": 5}, {"r": 10}]


def test_seeds_data_sets_and_machines_are_not_part_of_labels(tmp_path: Path):
    write_run(tmp_path, "SIGMA", RANKS, seed=1, settings={"threads": 1, "checkpoint_dir": "a", "nproc": 1})
    write_run(tmp_path, "SIGMA", RANKS, seed=2, settings={"threads": 2, "checkpoint_dir": "b", "nproc": 2})
    write_run(tmp_path, "SIGMA", RANKS, seed=1, dataset="other", settings={"r": 3})
    runs = read_runs([tmp_path])
    assert [(run.label, run.dataset, run.seed) for run in runs] == [
        ("SIGMA", "other", 1), ("SIGMA", "tiny_50%", 1), ("SIGMA", "tiny_50%", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (1, "1"), (None, "none"), (0.5, "0.5"), ([1, 2], "[1, 2]")]
)
def test_a_label_shows_values_of_all_types(tmp_path: Path, value: object, text: str):
    write_run(tmp_path, "SIGMA", RANKS, settings={"each": "first"})
    write_run(tmp_path, "SIGMA", RANKS, settings={"each": value})
    assert {run.label for run in read_runs([tmp_path])} == {"SIGMA each=first", f"SIGMA each={text}"}


def test_a_directory_given_twice_is_one_run(tmp_path: Path):
    folder = write_run(tmp_path / "0123456789abcdef", "SIGMA", RANKS)
    assert len(read_runs([folder, tmp_path, folder.parent, folder / ".." / folder.name])) == 1


def test_unfinished_runs_are_kept_with_their_reason(tmp_path: Path):
    (write_run(tmp_path, "SIGMA", RANKS) / "result.json").unlink()
    begin_run(tmp_path / "GRU4Rec-x", "GRU4Rec")
    prepared = begin_run(tmp_path / "0123456789abcdef", "Mamba4Rec", seed=7)
    (prepared / "config.yaml").rename(prepared / "settings.yaml")
    (prepared / "log.txt").write_text("epoch 0\nrecbole-sigma: error: no such data\n\n", encoding="utf-8")
    assert {run.model: (run.complete, run.problem) for run in read_runs([tmp_path])} == {
        "GRU4Rec": (False, "not finished: 0 epochs"),
        "SIGMA": (False, "not finished: 3 epochs"),
        "Mamba4Rec": (False, "failed: recbole-sigma: error: no such data"),
    }
    (prepared / "log.txt").unlink()
    assert last_line(prepared / "log.txt") == "" and read_runs([prepared])[0].problem == "never started"


def test_ranks_are_sorted_by_user(tmp_path: Path):
    write_run(tmp_path, "own.module:Net", RANKS, users=["d", "b", "a", "c"])
    (run,) = read_runs([tmp_path])
    ranks = run.ranks("test")
    assert run.label == run.model == "own.module:Net"
    assert (ranks.user.tolist(), ranks.rank.tolist()) == (["a", "b", "c", "d"], [12.0, 3.0, 10.0, 1.0])


def test_epochs_are_the_rows_of_metrics_csv(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", [1.0])
    assert [(row["epoch"], row["ndcg@10"]) for row in read_epochs(folder)] == list(CURVE)
    assert read_runs([tmp_path])[0].curve == read_epochs(folder)
    assert read_epochs(tmp_path) == []
    (folder / "metrics.csv").write_text("epoch,ndcg@10\n0,high\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.csv: .*high"):
        read_epochs(folder)


def test_paths_without_runs_are_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing: .*config\.yaml"):
        read_runs([tmp_path / "nothing"])
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "config.yaml").write_text("model: SIGMA\nseed: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml: .*dataset is None"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "3.*2020"),
        ({"protocol": None}, "'protocol'"),
        ({"peak_memory_mb": "much"}, "peak_memory_mb.*'much'"),
        ({"dataset": {**DATA, "name": "tiny_50%", "users": "few"}}, "users.*'few'"),
        ({"test": {"hit@10": 0.9}}, r"test hit@10 is 0\.9.*ranks-test\.npz"),
        ({"test": {"hit@10": 0.75}}, r"test ndcg@10 is None.*ranks-test\.npz"),
        ({"test": {"hit@ten": 0.9}}, "test.*'hit@ten'"),
        ({"test": {}}, "test"),
        *((text, "") for text in ("", "{", "[]")),
    ],
)
def test_a_result_that_is_not_the_runs_is_refused_by_name(tmp_path: Path, change: dict | str, message: str):
    folder = write_run(tmp_path, "SIGMA", RANKS, result=change if isinstance(change, dict) else {})
    if isinstance(change, str):
        (folder / "result.json").write_text(change, encoding="utf-8")
    for read in (lambda: read_runs([tmp_path])[0].ranks("test"), lambda: read_finished(folder)):
        with pytest.raises(UserError, match=rf"result\.json: .*{message}"):
            read()


def test_a_finished_run_is_read_with_every_digit_checked(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    recorded = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result = read_finished(folder)
    assert (result.folder, result.best_epoch) == (folder, 1)
    assert (result.valid, result.test) == (recorded["valid"], recorded["test"])
    assert read_runs([folder])[0].result == recorded
    recorded["test"]["ndcg@10"] = float(np.nextafter(recorded["test"]["ndcg@10"], 1))
    (folder / "result.json").write_text(json.dumps(recorded), encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json: test ndcg@10"):
        read_finished(folder)
    assert read_runs([folder])[0].ranks("test").rank.tolist() == RANKS  # a report allows for another order of addition


def test_only_a_trial_may_lack_test_metrics(tmp_path: Path):
    trial = write_run(tmp_path, "SIGMA", RANKS, result={"test": None, "trial": True})
    assert read_finished(trial).test == {} and read_runs([trial])[0].splits == ["valid"]
    with pytest.raises(UserError, match=r"result\.json: .*test"):
        read_finished(write_run(tmp_path, "SIGMA", RANKS, result={"test": None}))


def test_damaged_ranks_are_refused_by_name(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    ranks = Ranks.load(folder / "ranks-test.npz")
    np.savez(folder / "ranks-test.npz", **{**ranks.arrays(), "user": np.array(["a", "b", "b", "c"])})
    (folder / "ranks-valid.npz").unlink()
    for split, message in (("test", "a user twice"), ("valid", "not a file of ranks")):
        with pytest.raises(UserError, match=rf"ranks-{split}\.npz: .*{message}"):
            read_runs([folder])[0].ranks(split)
