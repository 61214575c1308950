"""run(): the folder it leaves, its honesty, its repeatability."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.evaluator import Collector, Evaluator
from safetensors.torch import load_file

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.quick_start import run
from recbole_sigma.registry import find_model
from recbole_sigma.runs.files import write_file
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.trainer import SequenceTrainer
from tests.helpers.models import OURS
from tests.helpers.runs import NINE, OUR_SIZE, SIZES, SMALL

FILES = "config.yaml items.json item_info.json metrics.csv model.safetensors ranks-test.npz ranks-valid.npz"
FILES += " result.json state.pt"
SmallRun = Callable[..., RunResult]  # the fixture `small_run`
KEYS = "model dataset seed protocol epochs best_epoch valid test n_parameters seconds_per_epoch samples_per_second"
KEYS += " eval_seconds peak_memory_mb device backend versions command"


@pytest.fixture
def small_run(tmp_path: Path) -> SmallRun:
    """`small_run(model, setting=value, ...)`: two epochs on the users of ml-100k with the shortest histories."""

    def start(model: str = "SIGMA", **settings: Any) -> RunResult:
        given = {**SMALL, **SIZES.get(model, OUR_SIZE), "epochs": 2, "checkpoint_dir": str(tmp_path / "saved")}
        return run(model, "ml-100k", settings={**given, **settings})

    return start


def result_of(run_result: RunResult) -> dict[str, Any]:
    return json.loads((run_result.folder / "result.json").read_text())


@pytest.mark.parametrize("model", NINE)
def test_a_run_leaves_all_that_it_promises(small_run: SmallRun, model: str):
    done = small_run(model)
    names = {path.name for path in done.folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events and names - events == set(FILES.split())
    assert re.fullmatch(rf"{model}-ml-100k-\d{{8}}-\d{{6}}-[0-9a-f]{{6}}", done.folder.name)

    result = result_of(done)
    assert set(KEYS.split()) <= result.keys()
    assert result["valid"] == done.valid and result["test"] == done.test
    for part in ("valid", "test"):
        ranks = Ranks.load(done.folder / f"ranks-{part}.npz")
        assert metrics_of_ranks(ranks.rank, [10]) == result[part]
        assert len(set(ranks.user)) == len(ranks.user)

    rows = list(csv.DictReader((done.folder / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1]
    best = max(rows, key=lambda row: float(row["ndcg@10"]))
    assert float(best["ndcg@10"]) == result["valid"]["ndcg@10"] and int(best["epoch"]) == result["best_epoch"]


def test_metrics_of_a_run_equal_those_of_recboles_evaluator(small_run: SmallRun):
    done = small_run("Mamba4Rec")
    config = Config("Mamba4Rec", "ml-100k", config_files=[done.folder / "config.yaml"])
    train, _, test = data_preparation(config, create_dataset(config))
    model = find_model("Mamba4Rec")(config, train.dataset).eval()
    model.load_state_dict(load_file(done.folder / "model.safetensors"))
    collector = Collector(config)
    for batch, _, positive_u, positive_i in test:
        scores = model.full_sort_predict(batch).detach()
        scores[:, 0] = -np.inf
        collector.eval_batch_collect(scores, batch, positive_u, positive_i)
    theirs = Evaluator(config).evaluate(collector.get_data_struct())
    assert {name: round(value, 4) for name, value in done.test.items()} == pytest.approx(dict(theirs), abs=1e-9)
    assert done.test["hit@10"] > 0


@pytest.mark.parametrize("model", ["Mamba4Rec", "GRU4Rec"])
def test_ranks_do_not_depend_on_how_many_scores_are_held_together(small_run: SmallRun, monkeypatch: Any, model: str):
    at_once = small_run(model, epochs=1)
    monkeypatch.setattr("recbole_sigma.training.trainer.SCORES_TOGETHER", 7 * 1683)  # 7 rows of ml-100k's items
    in_slices = small_run(model, epochs=1)
    found = [Ranks.load(each.folder / "ranks-test.npz").rank for each in (at_once, in_slices)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("model", ["Mamba4Rec", "RecMamba"])
@pytest.mark.parametrize("loss_type", ["CE", "BCE"])
def test_sequence_mode_trains_on_as_many_samples_and_learns(small_run: SmallRun, model: str, loss_type: str):
    settings = {"train_batch_size": 256, "epochs": 4, "loss_type": loss_type}
    done = {mode: small_run(model, train_mode=mode, **settings) for mode in ("prefix", "sequence")}
    results = {mode: result_of(each) for mode, each in done.items()}
    counts = [round(each["samples_per_second"] * each["seconds_per_epoch"]) for each in results.values()]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
    losses = [float(row["loss"]) for row in csv.DictReader((done["sequence"].folder / "metrics.csv").open())]
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("model", OURS)
def test_its_config_file_repeats_a_run_bit_for_bit_and_another_seed_does_not(small_run: SmallRun, model: str):
    short = {"threads": 2, "epochs": 1, "user_inter_num_interval": "[0,25]"}
    first, other = (small_run(model, **short, seed=seed) for seed in (1, 2))
    second = run(model, "ml-100k", config_files=[first.folder / "config.yaml"])
    assert first.folder != second.folder
    weights, again, different = (load_file(each.folder / "model.safetensors") for each in (first, second, other))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert (first.valid, first.test, first.best_epoch) == (second.valid, second.test, second.best_epoch)
    assert not torch.equal(weights["item_embedding.weight"], different["item_embedding.weight"])


def test_test_data_is_ranked_once_and_after_training(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    ranks = SequenceTrainer.ranks

    def note(self: Any, loader: Any, what: str, **options: Any) -> Any:
        seen.append(what)
        return ranks(self, loader, what, **options)

    monkeypatch.setattr(SequenceTrainer, "ranks", note)
    small_run("Mamba4Rec", epochs=3)
    assert seen == ["validation, epoch 0", "validation, epoch 1", "validation, epoch 2", "valid", "test"]


def test_training_stops_when_validation_no_longer_improves(small_run: SmallRun):
    result = result_of(small_run("Mamba4Rec", epochs=30, stopping_step=1, learning_rate=0.05))
    assert result["epochs"] == result["best_epoch"] + 3 < 30


@pytest.mark.parametrize(
    ("method", "at", "message"),
    [
        ("full_sort_predict", (0, 5), "validation, epoch 0, batch 0: row 0 .* NaN or infinite.* learning_rate"),
        ("calculate_loss", ..., "loss is nan in epoch 0, batch 0.* learning_rate"),
    ],
)
def test_a_number_that_is_nan_ends_the_run(small_run: SmallRun, monkeypatch: Any, method: str, at: Any, message: str):
    original = getattr(find_model("Mamba4Rec"), method)

    def poisoned(*args: Any) -> torch.Tensor:
        numbers = original(*args).clone()
        numbers[at] = float("nan")
        return numbers

    monkeypatch.setattr(find_model("Mamba4Rec"), method, poisoned)
    with pytest.raises(UserError, match=message):
        small_run("Mamba4Rec")


def test_data_without_enough_history_is_refused(tmp_path: Path, write_inter: Callable[..., Path], monkeypatch: Any):
    monkeypatch.setattr(SequenceTrainer, "fit", None)  # the mistake is reported before training
    write_inter([("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "b", 2)])
    with pytest.raises(UserError, match="tiny"):
        run("Mamba4Rec", "tiny", settings={"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")})


def test_evaluation_every_other_epoch_leaves_blanks_between(small_run: SmallRun):
    done = small_run("Mamba4Rec", epochs=3, eval_step=2)
    rows = list(csv.DictReader((done.folder / "metrics.csv").open()))
    assert [bool(row["ndcg@10"]) for row in rows] == [False, True, True]
    assert all(row["loss"] for row in rows)


def test_a_checkpoint_dir_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(SequenceTrainer, "fit", None)
    (tmp_path / "saved").write_text("")
    with pytest.raises(UserError, match=r"checkpoint_dir: .*saved"):
        run("Mamba4Rec", "ml-100k", settings={**SMALL, "checkpoint_dir": str(tmp_path / "saved")})


def test_two_runs_of_the_same_second_and_number_get_two_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = iter(["000001", "000001", "000001", "000002"])
    monkeypatch.setattr("recbole_sigma.runs.folder.secrets.token_hex", lambda _: next(numbers))
    monkeypatch.setattr("recbole_sigma.runs.folder.time.strftime", lambda _: "now")
    made = [RunFolder.create(tmp_path, "A", "d", {"seed": seed}, ["[PAD]"], {}) for seed in (1, 2)]
    assert [each.path.name for each in made] == ["A-d-now-000001", "A-d-now-000002"]
    assert [(each.path / "config.yaml").read_text() for each in made] == ["seed: 1\n", "seed: 2\n"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_is_ended_while_its_directory_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recbole_sigma.runs.folder.dump_settings", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path, "A", "d", {}, ["[PAD]"], {})
    assert not list(tmp_path.iterdir())


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text("before")

    def fails(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"result\.json: cannot be written: No space left on device"):
        write_file(path, fails)
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["result.json"]
