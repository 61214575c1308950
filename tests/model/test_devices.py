"""Nothing here mixes devices: every model and whole runs, on a GPU that is pretended (tests/pretended_cuda.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_sigma import resume, run
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.checkpoint import Progress
from tests.helpers.models import SWITCHES
from tests.helpers.on_cuda import CPU, assert_close
from tests.helpers.pretended_cuda import GPU, pretended_gpu
from tests.helpers.runs import NINE, OUR_SIZE, SIZES, TINY, stopping
from tests.model.test_cuda import RECBOLES, built, scores_and_gradients
from tests.training.test_distributed import losses

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA: see tests/test_cuda.py"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*without cuDNN:UserWarning"),
]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda ours: ours + torch.ones(3),
        lambda ours: torch.stack([ours, torch.ones(3)]),
        lambda ours: torch.where(torch.arange(3) > 1, ours, 0),
        lambda ours: torch.ones(3)[ours.long()],
        lambda ours: torch.nn.Linear(3, 2)(ours),
        lambda ours: ours.masked_fill(torch.zeros(3, dtype=torch.bool), 0),
    ],
)
def test_the_pretended_gpu_refuses_mixtures(mistake: Callable[..., Any]):
    with pretended_gpu(), pytest.raises(RuntimeError, match="on the same device"):
        mistake(torch.ones(3, device="cuda"))


@pytest.mark.parametrize("mistake", [lambda ours: ours.numpy(), np.asarray])
def test_the_pretended_gpu_refuses_numpy(mistake: Callable[..., Any]):
    with pretended_gpu(), pytest.raises(TypeError, match="cuda:0 device type tensor to numpy"):
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
def trained(tmp_path: Path) -> Callable[..., Path]:
    """`trained(model, setting=value)` -> the folder of a run."""

    def train(model: str, **settings: Any) -> Path:
        given = {**TINY, **SIZES.get(model, OUR_SIZE), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 2}
        return run(model, "ml-100k", settings={**given, **settings}).folder

    return train


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("model", NINE)
def test_no_run_mixes_devices(trained: Callable[..., Path], model: str):
    epochs = 1 if model == "FEARec" else 2  # it is slow
    expected = trained(model, epochs=epochs)
    with pretended_gpu():
        folder = trained(model, epochs=epochs, use_gpu=True)
    assert losses(folder) == pytest.approx(losses(expected), rel=1e-4)
    theirs, ours = (Ranks.load(each / "ranks-test.npz").rank for each in (expected, folder))
    assert np.mean(theirs == ours) > 0.95  # others differ by rounding
    assert result(folder)["device"] == "NVIDIA Pretended" and result(folder)["peak_memory_mb"] == 1024
    with_scan = SIZES.get(model) is None
    assert result(folder)["backend"] == ("mamba-ssm 0, torch's convolution" if with_scan else "torch")
    assert all(each.dtype == torch.float32 for each in RunFolder(folder, lock=False).load_weights().values())


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "Mamba4Rec", "train_mode": "sequence"},
        {"model": "RecMamba", "loss_type": "BCE", "clip_grad_norm": {"max_norm": 1.0}},
        {"model": "SIGMA", "loss_type": "BPR", "learner": "adagrad"},
    ],
    ids=str,
)
def test_no_way_to_train_mixes_devices(trained: Callable[..., Path], settings: dict[str, Any]):
    expected = trained(**settings)
    with pretended_gpu():
        assert losses(trained(**settings, use_gpu=True)) == pytest.approx(losses(expected), rel=1e-4)


@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_a_run_that_was_ended_goes_on_on_either_device(trained: Callable[..., Path], first: bool, then: bool):
    expected = losses(trained("Mamba4Rec"))
    with pretended_gpu():
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as ended:
            patch.setattr(Progress, "save", stopping(1))
            trained("Mamba4Rec", use_gpu=first)
        folder = Path(str(ended.value))
        resume(folder, {"use_gpu": then})
    assert losses(folder) == pytest.approx(expected, rel=1e-4)


def test_more_states_than_the_scan_on_cuda_has_are_refused(trained: Callable[..., Path]):
    with pretended_gpu(), pytest.raises(UserError) as caught:
        trained("SIGMA", use_gpu=True, d_state=300)
    assert str(caught.value) == "d_state must be at most 256 on a GPU, got 300; or run on CPU: use_gpu=False"


def test_a_gpu_without_the_extension_is_an_error_and_no_slow_path(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        UserError, match=r"selective_scan_cuda, which cannot be loaded .* pip install .*\(use_gpu: False\)"
    ):
        trained("SIGMA", use_gpu=True)
