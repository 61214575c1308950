"""A resumed run equals one that was never interrupted; directories that do not fit are refused."""

import csv
import json
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_sigma import cli, resume, run
from recbole_sigma.config.config import Config
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.checkpoint import Checkpoint
from tests.helpers.runs import NINE, SIZES, TINY, Malicious, environment, stopping, train_command
from tests.kill import outcome


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Path]:
    """`start(model, stop_after=n, setting=value, ...)` -> a run directory, interrupted by Ctrl-C after n epochs."""

    def start(
        model: str = "Mamba4Rec", stop_after: int | None = None, dataset: str = "ml-100k", **settings: Any
    ) -> Path:
        given = {**TINY, **SIZES.get(model, {}), "checkpoint_dir": str(tmp_path / "saved"), **settings}
        if stop_after is None:
            return run(model, dataset, settings=given).folder
        with pytest.raises(Interrupted) as interrupt, patch.object(Checkpoint, "on_epoch_end", stopping(stop_after)):
            run(model, dataset, settings=given)
        return Path(str(interrupt.value))

    return start


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        resume(folder, settings)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("stop_after", "settings"),
    [
        *((number, {}) for number in (0, 1, 3)),
        *((1, {"model": model}) for model in NINE if model != "Mamba4Rec"),
        (1, {"train_mode": "sequence"}),
        (1, {"loss_type": "BPR"}),
        (1, {"learner": "adagrad", "clip_grad_norm": {"max_norm": 1.0}}),
        (1, {"enable_amp": True, "enable_scaler": True}),
        (1, {"eval_step": 2, "epochs": 4}),
        (1, {"schedule": "cosine", "warmup_epochs": 1.5, "learner": "adamw", "weight_decay": 0.1}),
        (1, {"weight_average": 0.9, "label_smoothing": 0.1}),
        (2, {"weight_average": 0.9, "schedule": "cosine", "train_mode": "sequence", "head": "history"}),
        (1, {"learning_rate": 0.05, "epochs": 12, "stopping_step": 1}),
    ],
    ids=str,
)
def test_a_resumed_run_equals_an_uninterrupted_one(start: Any, stop_after: int, settings: dict[str, Any]):
    """To the last bit, for every model and every way to train."""
    folder = start(stop_after=stop_after, **settings)
    resume(folder)
    assert outcome(folder) == outcome(start(**settings))
    result = json.loads((folder / "result.json").read_text())
    assert result["resumed_after_epochs"] == ([stop_after] if stop_after else [])


def test_kills_at_random_moments_lose_nothing():
    script = Path(__file__).parents[1] / "kill.py"
    command = [sys.executable, "-W", "ignore", str(script), "--n", "20", "--models", "Mamba4Rec,GRU4Rec,BERT4Rec"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=script.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) kills, 0 failures", done.stdout)[1]) >= 20


def test_a_complete_run_gives_its_result_without_training(start: Any, monkeypatch: Any):
    folder = start()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("recbole_sigma.quick_start._start", None)
    result = json.loads(before["result.json"])
    assert resume(folder).test == result["test"] and resume(str(folder)).best_epoch == result["best_epoch"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_complete_run_whose_test_was_seen_is_not_trained_longer(start: Any):
    folder = start()
    assert refusal(folder, epochs=9).startswith(f"epochs: {folder} is finished")
    assert resume(folder, {"epochs": 3, "threads": 2}).folder == folder


def test_an_interrupted_run_can_be_given_more_epochs(start: Any):
    folder = start(stop_after=2, epochs=3)
    resume(folder, {"epochs": 5})
    longer = outcome(folder)
    assert longer == outcome(start(epochs=5))
    assert Config("Mamba4Rec", "ml-100k", config_files=[folder / "config.yaml"])["epochs"] == 5


def test_settings_that_decide_the_numbers_are_refused(start: Any):
    folder = start(stop_after=1)
    assert "learning_rate is 0.001 in" in refusal(folder, learning_rate=0.01)
    assert "model is 'Mamba4Rec' in" in refusal(folder, model="SIGMA")
    assert "dropout_prob is" in refusal(folder, dropout_prob=0.5)
    folder = start(stop_after=2)
    before = (folder / "config.yaml").read_text()
    assert "epochs must be at least 2" in refusal(folder, epochs=1)
    assert (folder / "config.yaml").read_text() == before


def test_the_last_epoch_is_evaluated_where_it_became_the_last_by_resuming(start: Any):
    folder = start(stop_after=3, eval_step=5, epochs=20)
    assert resume(folder, {"epochs": 3}).best_epoch == 2
    assert outcome(folder) == outcome(start(eval_step=5, epochs=3))


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    assert repr(str(tmp_path / "nowhere")) in refusal(tmp_path / "nowhere")
    assert refusal(tmp_path).startswith(f"{tmp_path}: not a run directory") and "config.yaml" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:-1], "state.pt: .*interactions was 24, is 23; mean_length was"),
        (lambda rows: [row.replace("\t5", "\t7") for row in rows], "state.pt: .*sha256 was '[0-9a-f]{64}', is '"),
        (lambda rows: [*rows, "u0\tnew\t99"], r"items.json: has 6 items, the data 7"),
        (lambda rows: [row.replace("i3", "j3") for row in rows], r"items.json: .* item 4 is 'i3', in the data 'j3'"),
    ],
)
def test_other_data_are_refused(tmp_path: Path, write_inter: Any, start: Any, change: Any, says: str):
    rows = [f"u{user}\ti{(user + step) % 6}\t{step}" for user in range(4) for step in range(6)]
    file = write_inter([row.split("\t") for row in rows])
    folder = start(stop_after=1, dataset="tiny", data_path=str(tmp_path))
    file.write_text("\n".join([file.read_text().splitlines()[0], *change(rows)]) + "\n")
    assert re.search(says, refusal(folder))


def test_a_folder_that_another_process_trains_in_is_refused(start: Any):
    folder = start(stop_after=1)
    with RunFolder(folder).locked():
        assert refusal(folder).startswith(f"{folder}: another process trains in this directory")
    resume(folder)


FILES = ("state.pt", "model.safetensors", "items.json", "config.yaml", "result.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_under_the_name_of_a_file_of_ours_is_not_run(start: Any, tmp_path: Path, name: str, how: str):
    folder = start(stop_after=2, learning_rate=1e-12)  # the first epoch stays the best: its weights are read
    write = pickle.dumps if how == "pickle" else None
    with (folder / name).open("wb") as file:
        file.write(write(Malicious(tmp_path / "run"))) if write else torch.save(Malicious(tmp_path / "run"), file)
    if name == "model.safetensors":
        with pytest.raises(UserError, match=r"model.safetensors: cannot be read as safetensors"):
            RunFolder(folder).load_weights()
    else:
        assert str(folder / name) in refusal(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
@pytest.mark.parametrize("how", ["empty", "cut", "changed", "text"])
def test_a_damaged_file_is_refused(start: Any, name: str, how: str):
    folder = start(stop_after=1)
    path = folder / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "changed": changed, "text": b"hello"}[how])
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        RunFolder(folder).load_weights() if name == "model.safetensors" else resume(folder)
    assert "\n" not in str(error.value)


def test_a_state_of_another_run_is_refused_with_the_difference(start: Any):
    folder, other = start(stop_after=1), start(stop_after=1, hidden_size=8)
    shutil.copy(other / "state.pt", folder)
    assert re.search(r"state.pt: .*hidden_size was 8, is 16$", refusal(folder))


def test_a_state_of_another_version_is_refused(start: Any):
    folder = start(stop_after=1)
    content = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**content, "format": 99}, folder / "state.pt")
    said = refusal(folder)
    assert said.startswith(f"{folder / 'state.pt'}: ") and "99" in said


def test_weights_of_other_shapes_are_refused_with_the_difference(start: Any):
    folder = start(stop_after=1)
    state = RunFolder(folder).load_state()
    state["model"]["extra"] = torch.zeros(1)
    del state["model"]["item_embedding.weight"]
    RunFolder(folder).save_state(state)
    said = refusal(folder)
    assert str(folder / "state.pt") in said and '"extra"' in said and '"item_embedding.weight"' in said


def test_weights_can_be_read_by_safetensors_alone(start: Any, tmp_path: Path):
    folder = start()
    theirs = load_file(folder / "model.safetensors")
    ours = RunFolder(folder).load_weights()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    save_file({**theirs, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="damaged: its tensors are not those that were saved"):
        RunFolder(folder).load_weights()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, number: signal.Signals):
    settings = {**TINY, "epochs": 1000, "stopping_step": 1000, "state": "INFO", "checkpoint_dir": tmp_path}
    process = subprocess.Popen(
        train_command(model="GRU4Rec", **settings), stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the suite is a background job
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("epoch   2"):
            process.send_signal(number)
            break
    last = process.stderr.read().splitlines()[-1]
    assert process.wait() == 130
    folder = next(tmp_path.glob("GRU4Rec*"))
    assert last == f"recbole-sigma: interrupted; resume with: recbole-sigma train --resume={folder}"
    assert cli.main(["train", f"--resume={folder}", "--epochs=6"]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= 6


def test_a_full_disk_leaves_the_state_before(start: Any):
    folder = start(stop_after=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("events")}

    def tiny_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        train_command(resume=folder), capture_output=True, text=True, env=environment(), preexec_fn=tiny_disk
    )
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"recbole-sigma: error: {folder / 'state.pt'}: ") and "File too large" in last
    assert {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("events")} == before
    resume(folder)
    assert outcome(folder) == outcome(start())


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path):
    command = train_command(model="GRU4Rec", **{**TINY, "epochs": 1, "checkpoint_dir": tmp_path})
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(3)]
    folders = {process.communicate()[0].splitlines()[-1] for process in runs}
    assert len(folders) == 3 == len(list(tmp_path.iterdir()))
