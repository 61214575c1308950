"""Folders of runs are read as they are: labelled by what differs, whole or refused, and never dropped."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs.reader import read_runs
from tests.helpers.recorded_runs import CURVE, begin_run, write_run

RANKS = [1.0, 3.0, 12.0, 10.0]


def test_a_run_is_labelled_by_its_model(tmp_path: Path):
    write_run(tmp_path, "SIGMA", RANKS)
    write_run(tmp_path, "GRU4Rec", RANKS)
    assert [run.label for run in read_runs([tmp_path])] == ["GRU4Rec", "SIGMA"]


def test_settings_that_differ_make_the_label_and_its_order(tmp_path: Path):
    for r in (10, 2, 5):
        write_run(tmp_path, "SIGMA", RANKS, settings={"r": r, "partial_flip": True})
    write_run(tmp_path, "SASRec", RANKS, settings={"n_heads": 4})
    runs = read_runs([tmp_path])
    assert [run.label for run in runs] == ["SASRec", "SIGMA r=2", "SIGMA r=5", "SIGMA r=10"]
    assert [dict(run.varied) for run in runs] == [{}, {"r": 2}, {"r": 5}, {"r": 10}]


def test_seeds_data_sets_places_and_speed_are_no_difference(tmp_path: Path):
    write_run(tmp_path, "SIGMA", RANKS, seed=1, settings={"threads": 1, "checkpoint_dir": "a"})
    write_run(tmp_path, "SIGMA", RANKS, seed=2, settings={"threads": 2, "checkpoint_dir": "b"})
    write_run(tmp_path, "SIGMA", RANKS, seed=1, dataset="other", settings={"r": 3})
    runs = read_runs([tmp_path])
    assert [(run.label, run.dataset, run.seed) for run in runs] == [
        ("SIGMA", "other", 1), ("SIGMA", "tiny_50%", 1), ("SIGMA", "tiny_50%", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (1, "1"), (None, "none"), (0.5, "0.5"), ([1, 2], "[1, 2]")]
)
def test_a_label_tells_kinds_of_values_apart(tmp_path: Path, value: object, text: str):
    write_run(tmp_path, "SIGMA", RANKS, settings={"each": "first"})
    write_run(tmp_path, "SIGMA", RANKS, settings={"each": value})
    assert {run.label for run in read_runs([tmp_path])} == {"SIGMA each=first", f"SIGMA each={text}"}


def test_a_folder_given_twice_is_one_run(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    assert len(read_runs([folder, tmp_path, folder / ".." / folder.name])) == 1


def test_an_experiments_folder_has_its_runs_one_level_deeper(tmp_path: Path):
    write_run(tmp_path / "0123456789abcdef", "SIGMA", RANKS)
    assert [run.model for run in read_runs([tmp_path])] == ["SIGMA"]


def test_a_run_that_is_not_complete_is_kept_and_says_so(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "result.json").unlink()
    begin_run(tmp_path / "GRU4Rec-x", "GRU4Rec")
    runs = read_runs([tmp_path])
    assert [(run.complete, run.problem) for run in runs] == [
        (False, "not complete: 0 epochs"), (False, "not complete: 3 epochs"),
    ]  # fmt: skip


def test_a_run_that_failed_before_it_had_a_folder_says_why(tmp_path: Path):
    place = begin_run(tmp_path / "0123456789abcdef", "GRU4Rec", seed=7)
    (place / "config.yaml").rename(place / "settings.yaml")
    (place / "log.txt").write_text("epoch 0\nrecbole-sigma: error: no such data\n\n", encoding="utf-8")
    (run,) = read_runs([tmp_path])
    assert (run.model, run.seed, run.problem) == ("GRU4Rec", 7, "failed: recbole-sigma: error: no such data")


def test_ranks_are_in_the_order_of_users(tmp_path: Path):
    write_run(tmp_path, "SIGMA", RANKS, users=["d", "b", "a", "c"])
    ranks = read_runs([tmp_path])[0].ranks("test")
    assert ranks.user.tolist() == ["a", "b", "c", "d"]
    assert ranks.rank.tolist() == [12.0, 3.0, 10.0, 1.0]


def test_the_curve_is_that_of_metrics_csv(tmp_path: Path):
    write_run(tmp_path, "SIGMA", [1.0])
    curve = read_runs([tmp_path])[0].curve
    assert [(row["epoch"], row["ndcg@10"]) for row in curve] == list(CURVE)


def test_a_path_without_runs_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing: no run there; the folder of a run has a config\.yaml"):
        read_runs([tmp_path / "nothing"])


def test_settings_of_no_run_are_refused_by_name(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "config.yaml").write_text("model: SIGMA\nseed: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml: not the settings of a run: dataset is None"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, r"result\.json: is of SIGMA on tiny_50%, seed 3, config\.yaml of SIGMA on tiny_50%, seed 2020"),
        ({"protocol": None}, r"result\.json: not the result of a run: protocol must be a dict"),
        ({"peak_memory_mb": "much"}, r"result\.json: not the result of a run: peak_memory_mb must be a number"),
        ({"dataset": {"name": "tiny_50%", "users": None}}, r"not the result of a run: users must be a number"),
        ({"test": {"hit@10": 0.9}}, r"result\.json: test hit@10 is not what ranks-test\.npz gives"),
        ({"test": {"hit@ten": 0.9}}, r"result\.json: test hit@ten is not what ranks-test\.npz gives"),
    ],
)
def test_a_result_that_is_not_the_runs_is_refused_by_name(tmp_path: Path, change: dict, message: str):
    write_run(tmp_path, "SIGMA", RANKS, result=change)
    (run,) = read_runs([tmp_path])
    with pytest.raises(UserError, match=message):
        run.ranks("test")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_result_is_refused_by_name(tmp_path: Path, text: str):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json: "):
        read_runs([folder])[0].ranks("test")


def test_a_damaged_table_of_metrics_is_refused_by_name(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "metrics.csv").write_text("epoch,ndcg@10\n0,high\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.csv: not a table of metrics"):
        _ = read_runs([folder])[0].curve


def test_a_user_with_two_ranks_is_refused(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    ranks = Ranks.load(folder / "ranks-test.npz")
    np.savez(folder / "ranks-test.npz", **{**ranks.arrays(), "user": np.array(["a", "b", "b", "c"])})
    with pytest.raises(UserError, match=r"ranks-test\.npz: has a user twice"):
        read_runs([folder])[0].ranks("test")


def test_a_missing_file_of_ranks_is_refused_by_name(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    (folder / "ranks-valid.npz").unlink()
    with pytest.raises(UserError, match=r"ranks-valid\.npz: not a file of ranks"):
        read_runs([folder])[0].ranks("valid")


def test_the_recorded_command_stays_as_it_was(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", RANKS)
    recorded = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert read_runs([folder])[0].result == recorded
