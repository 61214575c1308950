"""Several processes give what one gives: real ones, with gloo on the CPU."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma import cli
from recbole_sigma.data.loaders import BatchSampler
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.training.distributed import Group, join
from tests.helpers import runs
from tests.helpers.runs import environment, options, train_command

ROOT = Path(__file__).parents[2]
TINY = {**runs.TINY, "state": "INFO", "dataset": "ml-100k", "dropout_prob": 0.0}
TRAIN = ["-m", "recbole_sigma.cli", "train"]


def start(
    program: list[str], folder: Path, variables: dict[str, str] | None = None, **more: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *program, *options(**{**TINY, "checkpoint_dir": folder, **more})],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**environment(), **(variables or {})},
    )  # fmt: skip


def only_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`alone(setting=value, ...)` -> the folder of the run in one process."""

    def run(**more: Any) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        assert cli.main(["train", *options(**{**TINY, "checkpoint_dir": folder, **more})]) == 0
        return only_run(folder)

    return run


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "run_recbole_sigma.py"]


@pytest.mark.parametrize(
    ("program", "more", "here"),
    [
        # 4,013 samples: of the last batch, one row, the second process has none
        (TRAIN, {"model": "Mamba4Rec", "train_batch_size": 1003}, {"nproc": 2}),
        (TRAIN, {"model": "RecMamba", "train_mode": "sequence", "train_batch_size": 500}, {"nproc": 2}),
        (TORCHRUN, {"model": "GRU4Rec", "clip_grad_norm": "{max_norm: 0.5}"}, {}),
    ],
    ids=["nproc", "sequence", "torchrun"],
)
def test_two_processes_give_the_metrics_of_one(
    tmp_path: Path, alone: Any, program: list[str], more: dict[str, Any], here: dict[str, Any]
):
    process = start(program, tmp_path, **more, **here)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.findall(r"^/.*$", out, re.MULTILINE)[-1] == str(only_run(tmp_path))

    one, two = alone(**more), only_run(tmp_path)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    for split in ("valid", "test"):
        assert results[1][split] == pytest.approx(results[0][split], abs=1e-4)
        theirs, ours = (Ranks.load(run / f"ranks-{split}.npz") for run in (two, one))
        np.testing.assert_array_equal(theirs.user, ours.user)
        assert np.mean(theirs.rank == ours.rank) > 0.95  # others differ by rounding
    assert [each["processes"] for each in results] == [1, 2]
    files = [{path.name for path in run.iterdir() if "events" not in path.name} for run in (one, two)]
    assert files[0] == files[1]


def test_two_machines_make_a_group(tmp_path: Path, alone: Any):
    """What torchrun sets on two machines: both processes here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    machines = [start(TRAIN, tmp_path, {**variables, "RANK": rank}, model="GRU4Rec") for rank in "01"]
    for process in machines:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == str(only_run(tmp_path))
    assert losses(only_run(tmp_path)) == pytest.approx(losses(alone(model="GRU4Rec")), rel=1e-5)


def test_a_killed_process_stops_the_run_and_it_can_be_resumed(tmp_path: Path):
    long = {"epochs": 10_000, "stopping_step": 10_000, "nproc": 2, "model": "GRU4Rec"}
    process = start(TRAIN, tmp_path, **long)
    for line in process.stderr:
        if line.startswith("epoch   1"):
            os.kill(int(children(process.pid)[1]), signal.SIGKILL)
            break
    message = process.stderr.read().splitlines()[-1]
    assert process.wait() == 2
    folder = only_run(tmp_path)
    assert message.startswith("recbole-sigma: error: nproc: ") and "SIGKILL" in message
    assert message.endswith(f"--resume={folder}")

    before = len(losses(folder))
    again = subprocess.run(
        train_command(resume=folder, epochs=before + 2), capture_output=True, text=True, env=environment()
    )
    assert again.returncode == 0, again.stderr
    assert len(losses(folder)) == before + 2
    assert json.loads((folder / "result.json").read_text())["processes"] == 2


def children(process: int) -> list[str]:
    """Of a process, those that train."""
    pids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_an_error_in_two_processes_is_one_line(tmp_path: Path):
    process = start(TRAIN, tmp_path, model="GRU4Rec", learning_rate="1e18", nproc=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    last = err.splitlines()[-1]
    assert re.fullmatch(r"recbole-sigma: error: the loss is (nan|inf) in epoch \d, batch \d+: try a lower .*", last)
    assert "Traceback" not in err


def test_fewer_gpus_than_processes_are_refused(monkeypatch: Any):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"gpu_id .* process 1 has none, got '0'"):
        join({"device": torch.device("cuda"), "gpu_id": "0"})


@given(n_rows=st.integers(0, 60), batch_size=st.integers(1, 20), size=st.integers(1, 5), sized=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_shards_of_the_processes_have_every_row_once(n_rows: int, batch_size: int, size: int, sized: bool):
    sizes = np.arange(n_rows) % 4 + 1 if sized else None
    samplers = [BatchSampler(n_rows, batch_size, torch.Generator().manual_seed(1), sizes) for _ in range(size)]
    one = list(BatchSampler(n_rows, batch_size, torch.Generator().manual_seed(1), sizes))
    for rank, sampler in enumerate(samplers):
        sampler.rank, sampler.size = rank, size
    shards = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in shards} == {len(one)}
    for whole, *parts in zip(one, *shards, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
        assert [part.rank for part in parts] == list(range(size))
        assert max(len(part.rows) for part in parts) - min(len(part.rows) for part in parts) <= 1


def test_a_single_process_leaves_its_gradients():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    assert Group().sum_gradients([parameter], 0.5, 7) == (0.5, 7)
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_script_without_a_main_guard_ends_with_one_line_that_names_the_guard(tmp_path: Path):
    settings = {**TINY, "checkpoint_dir": str(tmp_path / "saved"), "nproc": 2, "epochs": 1}
    (tmp_path / "script.py").write_text(
        f"from recbole_sigma import run\nresult = run('GRU4Rec', 'ml-100k', config_dict={settings!r})\nprint('done')\n"
    )
    command = [sys.executable, "-W", "ignore", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), text=True, capture_output=True)
    assert done.returncode == 2 and "done" not in done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert "nproc" in line and "if __name__ == '__main__':" in line
    assert not list(tmp_path.glob("saved/*"))
