"""What a run writes for TensorBoard."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_sigma import run
from recbole_sigma.layers.mixing import WeightedSum
from recbole_sigma.training.callbacks import TensorBoard
from tests.helpers.runs import OUR_SIZE, TINY


class Gate(torch.nn.Module):
    log_mean = True

    def forward(self, value: float) -> list[torch.Tensor]:
        return [torch.full((2, 3), value), torch.full((2, 3), -value)]


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_each_epoch_has_the_weights_of_branches_and_the_means_of_gates_in_evaluation(tmp_path: Path):
    model = torch.nn.ModuleDict({"mixing": WeightedSum({"mamba": 0.8, "gru": 0.2}), "gate": Gate()})
    board = TensorBoard(tmp_path, 0, model)
    model.train()
    model["gate"](100.0)
    for epoch, values in enumerate([(1.0, 3.0), (5.0,)]):
        model.eval()
        for value in values:
            model["gate"](value)
        board.on_epoch_end({"epoch": epoch, "loss": 7.0})
        with torch.no_grad():
            model["mixing"].shares += 1
    board.close()
    found = scalars(tmp_path)
    assert found["loss"] == [7.0, 7.0] and found["gate/mean 0"] == [2.0, 5.0] and found["gate/mean 1"] == [-2.0, -5.0]
    assert found["mixing/mamba"] == pytest.approx([0.8, 1.8]) and found["mixing/gru"] == pytest.approx([0.2, 1.2])


@pytest.mark.parametrize("settings", [{}, {"form": "paper", "num_layers": 2}, {"mixing": "gated", "ds_gate": False}])
def test_a_run_of_sigma_writes_them_for_each_layer(tmp_path: Path, settings: dict[str, Any]):
    done = run("SIGMA", "ml-100k", settings={**TINY, "epochs": 1, "checkpoint_dir": str(tmp_path), **settings})
    layers = range(settings.get("num_layers", 1))
    branches = ("mamba", "gru") if settings.get("form") == "paper" else ("mamba", "flipped", "gru")
    expected = {f"layers.{n}.mixing/{name}" for n in layers for name in branches if "mixing" not in settings}
    expected |= {f"layers.{n}.gate/mean {k}" for n in layers for k in (0, 1) if "ds_gate" not in settings}
    assert {name for name in scalars(done.folder) if name.startswith("layers")} == expected


def test_means_of_gates_are_those_of_evaluation_whatever_the_head(tmp_path: Path):
    settings = {**TINY, **OUR_SIZE, "epochs": 2, "form": "paper", "d_conv": 2}
    means = []
    for head in ("plain", "history"):
        done = run("SIGMA", "ml-100k", settings={**settings, "head": head, "checkpoint_dir": str(tmp_path / head)})
        means.append(scalars(done.folder)["layers.0.gate/mean 0"])
    assert means[0] == means[1] and len(means[0]) == 2
