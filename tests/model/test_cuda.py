"""CUDA gives what the CPU gives: models, operations, runs.

Everything is skipped where torch sees no GPU, and what needs mamba-ssm where it is not installed. `make cuda` sets
RECBOLE_SIGMA_CUDA_TESTS_ON=cuda: then a missing GPU or extension stops pytest with the reason. With
RECBOLE_SIGMA_CUDA_TESTS_ON=cpu the CPU replaces the GPU, which tests these tests.

Float32 is float32 here: TF32 is off, as is dropout unless a test says otherwise.
"""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from recbole_sigma import resume
from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.errors import Interrupted
from recbole_sigma.evaluation.ranks import Ranks, target_ranks
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.registry import build_model
from tests.helpers.models import SWITCHES, batch, build, histories
from tests.helpers.on_cuda import (
    CPU,
    DEVICE,
    GPU,
    INSTEAD,
    WITHOUT_SCAN,
    assert_close,
    needs_gpu,
    needs_scan,
    needs_two,
)
from tests.helpers.runs import NINE, OUR_SIZE, SIZES, TINY
from tests.training import test_distributed
from tests.training.test_distributed import losses

pytestmark = [needs_gpu, pytest.mark.usefixtures("full_precision")]
WITHOUT_MAMBA = ("LinRec", "GRU4Rec", "SASRec", "BERT4Rec", "FEARec")
RECBOLES = tuple(name for name in NINE if name in WITHOUT_MAMBA[1:])
LENGTHS = [1, 12, 3, 7, 7, 2, 9, 5]
# A bfloat16 has 8 bits: each operation rounds by up to 2^-9 = 0.2 %, and the few between an item and its score add up
# like a random walk. With bfloat16 on CPU 0.2 to 0.6 % was measured, in scores and in gradients; CUDA rounds more of
# the operations (such as the GRU's states), and is allowed about four times as much.
BF16_SCORES, BF16_GRADIENTS = 0.02, 0.03


def cases() -> Iterator[Any]:
    """Every model, ours with every switch."""
    for name, settings in [*SWITCHES, *((name, {}) for name in RECBOLES)]:
        marks = [] if name in WITHOUT_MAMBA else [needs_scan]
        yield pytest.param(name, settings, id=f"{name} {settings or ''}", marks=marks)


def models(names: tuple[str, ...] = NINE) -> list[Any]:
    return [pytest.param(name, marks=[] if name in WITHOUT_MAMBA else [needs_scan]) for name in names]


def built(name: str, settings: Any, sample_config: Any, use_gpu: bool) -> tuple[nn.Module, Any]:
    """A model, dropout off, and a training batch; the same whatever the device."""
    if name not in RECBOLES and "train_mode" not in settings:
        model = build(sample_config, name, use_gpu=use_gpu, **settings)
        return without_dropout(model), batch(*histories(LENGTHS, width=12))
    given = {**TINY, "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 64, "use_gpu": use_gpu}
    config = Config(name, "ml-100k", settings={**given, "train_mode": "prefix", **settings})
    train, _, _ = data_preparation(config, create_dataset(config))
    torch.manual_seed(0)
    random.seed(0)  # BERT4Rec's masks
    return without_dropout(build_model(config, train.dataset)), next(iter(train))


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def scores_and_gradients(model: nn.Module, rows: Any, device: torch.device, **autocast: Any) -> dict[str, Tensor]:
    """On the CPU, in float64: scores of all items (of padded rows), loss, and the gradient of each parameter."""
    model, rows = model.to(device), rows.to(device)
    random.seed(1)  # FEARec's samples of the same target
    torch.seed()  # any other random number would differ between the devices
    results = {}
    with torch.autocast(device.type, enabled=bool(autocast), **autocast):
        if rows["item_id_list"].dim() == 2:
            with torch.no_grad():
                results["scores"] = model.eval().full_sort_predict(rows)
        loss = results["loss"] = model.train().calculate_loss(rows)
    loss.backward()
    results |= {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert all(each.device.type == device.type for each in results.values())
    return {name: each.detach().double().cpu() for name, each in results.items()}


@pytest.mark.parametrize(("name", "settings"), list(cases()))
def test_scores_and_gradients_are_those_of_the_cpu(sample_config: Any, name: str, settings: Any):
    expected = scores_and_gradients(*built(name, settings, sample_config, False), CPU)
    got = scores_and_gradients(*built(name, settings, sample_config, GPU), DEVICE)
    # in FEARec's loss what its last LayerNorm scales almost cancels: 1e-6 more or less in the weights change 1 % of it
    assert_close(got, expected, scores=1e-4, gradients=3e-2 if name == "FEARec" else 1e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("SIGMA", {"form": form, "r": r}) for form in ("paper", "released") for r in (0, 2, 7)),
        ("SIGMA", {"residual": "layer", "gru_reset": "before"}),
        ("Mamba4Rec", {"num_layers": 2}),
        ("RecMamba", {}),
        ("EMARec", {"head": "history", "co_occurrence": 0.4, "cosine_temperature": 0.07}),
        ("SASRec", {"head": "history"}),
        ("GRU4Rec", {}),
        ("BERT4Rec", {"mask_ratio": 1.0, "ft_ratio": 0.0}),
    ],
)
def test_one_pass_has_the_gradients_of_the_cpu(sample_config: Any, name: str, settings: Any):
    if name not in WITHOUT_MAMBA and WITHOUT_SCAN:
        pytest.skip(f"no mamba-ssm: {WITHOUT_SCAN}")
    results = []
    for use_gpu, device in ((GPU, DEVICE), (False, CPU)):
        model, rows = built(name, {"train_mode": "sequence", **settings}, sample_config, use_gpu)
        assert rows["item_id_list"].dim() == 1
        results.append(scores_and_gradients(model, rows, device))
    assert_close(*results, scores=1e-4, gradients=1e-3)


@pytest.mark.parametrize("name", models(tuple(name for name in NINE if name != "FEARec")))  # it refuses enable_amp
def test_bfloat16_autocast_stays_within_its_bound(sample_config: Any, name: str):
    expected = scores_and_gradients(*built(name, {}, sample_config, False), CPU)
    got = scores_and_gradients(*built(name, {}, sample_config, GPU), DEVICE, dtype=torch.bfloat16)
    difference = (got["scores"] - expected["scores"]).norm()
    assert difference <= BF16_SCORES * expected["scores"].norm()
    assert difference >= 1e-5 * expected["scores"].norm()  # it was bfloat16
    got_gradients, gradients = (
        torch.cat([each.reshape(-1) for key, each in results.items() if key not in ("scores", "loss")])
        for results in (got, expected)
    )
    assert (got_gradients - gradients).norm() <= BF16_GRADIENTS * gradients.norm()


@pytest.mark.parametrize(("name", "settings"), [case for case in cases() if case.values[0] not in RECBOLES])
def test_scores_depend_on_neither_padding_nor_neighbours(sample_config: Any, name: str, settings: Any):
    model = build(sample_config, name, use_gpu=GPU, **settings).to(DEVICE)
    items, lengths = (each.to(DEVICE) for each in histories(LENGTHS, width=12))
    with torch.no_grad():
        together = model(items, lengths)
        for row, length in enumerate(LENGTHS):
            alone = model(items[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
        wider = F.pad(items, (0, 5))
        torch.testing.assert_close(model(wider, lengths), together, rtol=1e-4, atol=1e-5)


class _CtrlC:
    """A callback that interrupts a run after its first epoch."""

    def on_epoch_end(self, row: Any) -> None:
        raise KeyboardInterrupt


def interrupted(trained: Any, model: str, **settings: Any) -> Path:
    """The directory of a run that was interrupted after its first epoch."""
    with pytest.raises(Interrupted) as caught:
        trained(model, callbacks=[_CtrlC()], **settings)
    return Path(str(caught.value.folder))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def served_ranks(folder: Path, use_gpu: bool) -> np.ndarray:
    """Ranks of all users on validation and test, with the run's weights on another device."""
    model = json.loads((folder / "result.json").read_text())["model"]
    config = Config(model, "ml-100k", config_files=[folder / "config.yaml"], settings={"use_gpu": use_gpu})
    train, *splits = data_preparation(config, create_dataset(config))
    network = config.model_class(config, train.dataset).to(config["device"]).eval()
    network.load_state_dict(weights(folder), strict=True)
    ranks = []
    with torch.no_grad():
        for rows, _, _, target in (batch for split in splits for batch in split):
            scores = network.full_sort_predict(rows.to(config["device"]))
            ranks.append(target_ranks(scores.view(len(rows), -1), target.to(config["device"])))
    return torch.cat(ranks).numpy()


@pytest.mark.parametrize("trained_on", ["cpu", "gpu"])
@pytest.mark.parametrize("model", models(("SIGMA", "Mamba4Rec", "LinRec", "GRU4Rec", "SASRec")))
def test_a_run_serves_on_the_other_device(trained: Any, model: str, trained_on: str):
    """The ranks of 99.9 % of ml-100k's 943 users, on both splits, are the same. (Fewer users without a GPU.)"""
    on_gpu = trained_on == "gpu" and GPU
    users = "[0,inf)" if GPU else "[0,25]"
    folder = trained(model, epochs=1, use_gpu=on_gpu, user_inter_num_interval=users)
    recorded = np.concatenate([Ranks.load(folder / f"ranks-{split}.npz").rank for split in ("valid", "test")])
    served = served_ranks(folder, use_gpu=not on_gpu and GPU)
    assert served.shape == recorded.shape and (INSTEAD or len(served) == 2 * 943)
    differ = served != recorded
    assert differ.sum() <= math.ceil(0.001 * len(differ)), np.stack([served, recorded])[:, differ]


@pytest.mark.parametrize("model", models())
def test_recommendations_and_sessions_are_those_of_the_cpu(trained: Any, model: str):
    folder = trained(model, epochs=1, head="history")
    here, there = (Recommender.load(folder, device=each.type) for each in (CPU, DEVICE))
    read = here.items[:8]
    expected = here.recommend([read, read[:1], []], k=20)
    sessions = [each.session(read[:5]) for each in (here, there)]
    for session in sessions:
        for item in read[5:]:
            session.append(item)
    pairs = [*zip(there.recommend([read, read[:1], []], k=20), expected, strict=True)]
    pairs.append((sessions[1].top_k(20), sessions[0].top_k(20)))
    for got, want in pairs:
        assert [score for _, score in got] == pytest.approx([score for _, score in want], rel=1e-3, abs=1e-4)
        assert len({item for item, _ in got} & {item for item, _ in want}) >= 19  # scores may be almost equal


@needs_scan
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SIGMA", {"head": "history", "co_occurrence": 0.4}),
        ("Mamba4Rec", {"num_layers": 2, "weight_average": 0.9, "schedule": "cosine"}),
        ("EMARec", {"head": "history", "cosine_temperature": 0.07, "learner": "adamw", "weight_decay": 0.01}),
        ("RecMamba", {"loss_type": "BCE"}),
    ],
)
def test_a_run_in_one_pass_is_that_of_the_cpu(trained: Any, model: str, settings: dict[str, Any]):
    given = {"train_mode": "sequence", "dropout_prob": 0.0, **settings}
    gpu, cpu = (losses(trained(model, use_gpu=use_gpu, **given)) for use_gpu in (GPU, False))
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("model", models(("SIGMA", "LinRec", "GRU4Rec", "BERT4Rec")))
def test_a_resumed_run_is_that_of_an_uninterrupted_one(trained: Any, model: str):
    """Dropout is on: the GPU's generator is restored, too. CUDA adds in any order, hence not to the last bit."""
    uninterrupted = losses(trained(model))
    folder = interrupted(trained, model)
    resume(folder)
    assert len(uninterrupted) == 3 and losses(folder) == pytest.approx(uninterrupted, rel=2e-4)


@needs_scan
@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_is_resumed_on_the_other_device(trained: Any, first: bool, then: bool):
    folder = interrupted(trained, "SIGMA", use_gpu=first and GPU)
    resume(folder, {"use_gpu": then and GPU})
    per_epoch = losses(folder)
    assert len(per_epoch) == 3 and per_epoch[2] < per_epoch[0]


@pytest.mark.parametrize("enable_scaler", [True, False])
@pytest.mark.parametrize("model", models(("SIGMA", "Mamba4Rec", "LinRec", "GRU4Rec", "SASRec")))
def test_mixed_precision_trains(trained: Any, model: str, enable_scaler: bool):
    folder = trained(model, enable_amp=True, enable_scaler=enable_scaler, learning_rate=0.003)
    per_epoch = losses(folder)
    assert all(map(math.isfinite, per_epoch)) and per_epoch[-1] < per_epoch[0]
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in weights(folder).values())


@needs_scan
def test_a_result_names_the_device_and_the_peak_memory(trained: Any):
    sizes = {"hidden_size": 128, "train_batch_size": 4096}, {"train_batch_size": 64}
    folders = [trained("SIGMA", epochs=1, **size) for size in sizes]
    large, small = (json.loads((folder / "result.json").read_text()) for folder in folders)
    if INSTEAD:
        assert small["backend"].startswith("numba") and small["device"].startswith("cpu")
    else:
        assert small["backend"].startswith("mamba-ssm") and small["device"] == torch.cuda.get_device_name()
        assert 0 < small["peak_memory_mb"] < large["peak_memory_mb"] / 2  # not that of the previous run


@needs_two
@pytest.mark.parametrize("model", models(("GRU4Rec", "Mamba4Rec")))
def test_two_gpus_give_the_losses_of_one(tmp_path: Path, trained: Any, model: str):
    one = losses(trained(model, dropout_prob=0.0))
    more = {**SIZES.get(model, OUR_SIZE), "model": model, "nproc": 2, "gpu_id": "0,1", "use_gpu": True, "threads": 1}
    process = test_distributed.start(test_distributed.TRAIN, tmp_path / "two", **more)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert losses(test_distributed.only_run(tmp_path / "two")) == pytest.approx(one, rel=1e-3)
