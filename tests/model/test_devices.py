"""No model and no run mixes devices: tested on a pretended GPU (tests/helpers/pretended_cuda.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_sigma import resume
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.quick_start import scan_backend
from tests.helpers.models import SWITCHES, refused
from tests.helpers.on_cuda import CPU, assert_close
from tests.helpers.pretended_cuda import GPU, pretended_gpu
from tests.helpers.runs import NINE, SIZES
from tests.model.test_cuda import RECBOLES, built, interrupted, scores_and_gradients, weights
from tests.training.test_distributed import losses

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA: see tests/model/test_cuda.py"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*without cuDNN:UserWarning"),
]


@pytest.fixture(autouse=True)
def torchs_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both devices: ours draws other numbers on the CPU."""
    monkeypatch.setattr(Dropout, "forward", torch.nn.Dropout.forward)


MIXED, NUMPY = (RuntimeError, "on the same device"), (TypeError, "cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda ours: ours + torch.ones(3), MIXED),
        (lambda ours: torch.stack([ours, torch.ones(3)]), MIXED),
        (lambda ours: torch.where(torch.arange(3) > 1, ours, 0), MIXED),
        (lambda ours: torch.ones(3)[ours.long()], MIXED),
        (lambda ours: torch.nn.Linear(3, 2)(ours), MIXED),
        (lambda ours: ours.masked_fill(torch.zeros(3, dtype=torch.bool), 0), MIXED),
        (lambda ours: ours.numpy(), NUMPY),
        (np.asarray, NUMPY),
    ],
)
def test_the_pretended_gpu_refuses_mixtures_and_numpy(mistake: Callable[..., Any], error: tuple[type[Exception], str]):
    with pretended_gpu(), pytest.raises(error[0], match=error[1]):
        mistake(torch.ones(3, device="cuda"))


def test_the_pretended_gpu_takes_what_cuda_takes():
    with pretended_gpu():
        ours = torch.ones(3, device="cuda", requires_grad=True)
        (2 * ours[torch.tensor([0, 2])] + torch.tensor(1.0)).sum().backward()
        assert ours.grad is not None and ours.grad.device == GPU and ours.grad.cpu().tolist() == [2, 0, 2]
        layer = torch.nn.GRU(3, 2).to("cuda")
        assert {each.device for each in layer.parameters()} == {GPU}
        assert layer(ours[None])[0].device == GPU
        assert layer.to("cpu")(torch.ones(1, 3))[0].device == CPU
        assert ours.detach().cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*SWITCHES, *((name, {}) for name in RECBOLES), ("BERT4Rec", {"loss_type": "BPR"}), ("FEARec", {"contrast": "us"})],
    ids=str,
)
def test_no_model_mixes_devices(sample_config: Any, name: str, settings: Any):
    expected = scores_and_gradients(*built(name, settings, sample_config, False), CPU)
    with pretended_gpu():
        got = scores_and_gradients(*built(name, settings, sample_config, True), GPU)
    assert_close(got, expected, scores=1e-5, gradients=1e-4)


@pytest.fixture
def on_cpu(trained: Any) -> Callable[..., Path]:
    """`on_cpu(model, setting=value)` -> the directory of a run of two epochs, on the CPU unless `use_gpu` is True."""
    return lambda model, **settings: trained(model, **{"use_gpu": False, "epochs": 2, "length_ratio": 1.25, **settings})


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("model", NINE)
def test_no_run_mixes_devices(on_cpu: Any, model: str):
    epochs = 1 if model == "FEARec" else 2  # it is slow
    expected = on_cpu(model, epochs=epochs)
    with pretended_gpu():
        folder = on_cpu(model, epochs=epochs, use_gpu=True)
    assert losses(folder) == pytest.approx(losses(expected), rel=1e-4)
    theirs, ours = (Ranks.load(each / "ranks-test.npz").rank for each in (expected, folder))
    assert np.mean(theirs == ours) > 0.95  # others differ by rounding
    assert result(folder)["device"] == "NVIDIA Pretended" and result(folder)["peak_memory_mb"] == 1024
    with_scan = model == "EMARec" or SIZES.get(model) is None
    assert result(folder)["backend"] == ("mamba-ssm 0, torch's convolution" if with_scan else "torch")
    assert all(each.dtype == torch.float32 for each in weights(folder).values())


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "Mamba4Rec", "train_mode": "sequence"},
        {"model": "RecMamba", "loss_type": "BCE", "clip_grad_norm": {"max_norm": 1.0}},
        {"model": "SIGMA", "loss_type": "BPR", "learner": "adagrad"},
    ],
    ids=str,
)
def test_no_way_to_train_mixes_devices(on_cpu: Any, settings: dict[str, Any]):
    expected = on_cpu(**settings)
    with pretended_gpu():
        assert losses(on_cpu(**settings, use_gpu=True)) == pytest.approx(losses(expected), rel=1e-4)


@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_an_interrupted_run_is_resumed_on_either_device(on_cpu: Any, first: bool, then: bool):
    expected = losses(on_cpu("Mamba4Rec"))
    with pretended_gpu():
        folder = interrupted(on_cpu, "Mamba4Rec", use_gpu=first)
        resume(folder, {"use_gpu": then})
    assert losses(folder) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "settings", "scans"),
    [("EMARec", {}, True), ("Mamba4Rec", {}, True), ("SIGMA", {"mamba": False}, False), ("GRU4Rec", {}, False)],
)
def test_the_backend_is_that_of_the_models_scans(sample_config: Any, model: str, settings: Any, scans: bool):
    assert (scan_backend(sample_config(model, **settings)) != "torch") == scans


def test_more_states_than_the_scan_on_cuda_has_are_refused(on_cpu: Any):
    with pretended_gpu(), refused("d_state", "256", "300", "use_gpu"):
        on_cpu("SIGMA", use_gpu=True, d_state=300)


def test_a_gpu_without_the_extension_is_an_error_and_no_slow_path(on_cpu: Any, monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    with refused("selective_scan_cuda", "pip install", "use_gpu: False"):
        on_cpu("SIGMA", use_gpu=True)


def test_fearec_on_a_gpu_refuses_half_precision(on_cpu: Any):
    with pretended_gpu(), refused("enable_amp", "FEARec", "float32"):
        on_cpu("FEARec", use_gpu=True, enable_amp=True)
