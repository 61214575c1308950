"""benchmarks/gpu.py on CPU, a stand-in for mamba-ssm's block: seconds of tiny data; figures are not looked at."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_sigma.layers.mamba import Mamba

LENGTH, ITEMS, BATCH = 10, 20, 64
SMALL = ("--hidden_size=16", f"--MAX_ITEM_LIST_LENGTH={LENGTH}", "--eval_batch_size=16")
QUICK = ("--device=cpu", "--rounds=1", "--steps=1", "--warm_up=1", f"--batch={BATCH}", "--threads=1")
# A released design's parameters, from where they stand in our model.
RENAMED = (
    ("embedding_norm.", "norm."), (".mamba.", ".block.mamba.block."), (".gate.", ".block.gates."),
    (".fe_gru.", ".block."), (".mixing.", ".block.mixing."), (".projection.", ".block.projection."),
)  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`script(name)` -> a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def data_path(write_inter: Callable[..., Path]) -> str:
    """Data set `tiny`: 24 users of 3 to 14 items."""
    rows = [(user, (user * 7 + k * (1 + user % 3)) % ITEMS, k) for user in range(24) for k in range(3 + user % 12)]
    return str(write_inter(rows).parents[1])


@pytest.fixture
def run_script(
    script: Callable[[str], ModuleType], data_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """`run_script(option, ...)` -> what the script wrote."""

    def run(*options: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        given = (f"--data_path={data_path}", "--dataset=tiny", f"--out={out}")
        monkeypatch.setattr(sys, "argv", ["gpu.py", *given, *QUICK, *SMALL, *options])
        assert script("gpu").main() == 0
        return json.loads(out.read_text())

    return run


@pytest.fixture
def make(script: Callable[[str], ModuleType], data_path: str) -> Callable[..., Any]:
    """`make(name, setting=value, ...)` -> a Contestant on the tiny data."""

    def contestant(name: str, **settings: Any) -> Any:
        sizes = {"hidden_size": 16, "MAX_ITEM_LIST_LENGTH": LENGTH, "train_batch_size": BATCH}
        module = script("contestants")
        return module.Contestant(
            name, module.Data("tiny", {"data_path": data_path, "use_gpu": False, **sizes, **settings})
        )

    return contestant


def test_the_race_measures_all_and_says_on_what(
    run_script: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    models = "SIGMA,SASRec,released:SIGMA,released:Mamba4Rec,recbole:SASRec"
    got = run_script(f"--models={models}", "--epochs=1", "--length_ratio=1.25,100")
    labels = [each["label"] for each in got["contestants"]]
    ours = [f"{name}, length_ratio {ratio}" for name in ("SIGMA", "SASRec") for ratio in ("1.25", "100")]
    assert labels == [*ours, "released:SIGMA", "released:Mamba4Rec", "recbole:SASRec"]
    for each in got["contestants"]:
        seconds = each["step_seconds"] + each["epoch_seconds"] + each["inference_seconds"]
        assert len(seconds) == 3
        assert all(0 < one < math.inf for one in seconds)
        assert each["training_mb"] is None  # torch counts a GPU's memory alone
    assert len(got["data"]["sha256"]) == 64
    assert torch.__version__.startswith(got["versions"]["torch"])  # PyPI leaves +cu130 out
    assert got["backend"]["released"] == "a stand-in, not mamba-ssm"
    assert got["command"].startswith("python benchmarks/gpu.py --data_path")
    whole = {each["label"]: each["epoch_seconds"][0] for each in got["contestants"]}
    assert got["shares"] == {label: pytest.approx(whole[label] / whole["released:SIGMA"]) for label in ours[:2]}
    shown = capsys.readouterr().out
    assert "at most 1/3" in shown
    assert "no result" in shown
    assert all(label in shown for label in labels)


@pytest.mark.parametrize("model", ["SIGMA", "released:SIGMA", "recbole:SASRec"])
def test_the_profile_tells_stages_parts_and_operators(
    model: str, run_script: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    got = run_script(f"--profile={model}")
    assert list(got["stages_ms"]) == [
        "data", "to the device", "encoder, forward", "softmax, both ways", "encoder, backward", "optimiser",
    ]  # fmt: skip
    assert all(ms > 0 for ms in got["stages_ms"].values())
    assert math.isclose(sum(got["parts_ms"].values()), got["sum_ms"])
    assert {"matrix products", "optimiser", "dropout"} <= {*got["parts_ms"]}
    assert ("scan" in got["parts_ms"]) == ("SIGMA" in model)
    assert got["chunks_a_step"] is None or got["chunks_a_step"] > 1
    assert got["top"][0]["ms"] > 0
    assert "encoder, backward" in capsys.readouterr().out


def test_parts_of_a_step_are_told_by_the_names_of_kernels(script: Callable[[str], ModuleType]) -> None:
    part_of = script("where_time_goes").part_of
    assert part_of("void selective_scan_bwd_kernel<Selective_Scan_bwd_kernel_traits<32, 4>>") == "scan"
    assert part_of("void causal_conv1d_fwd_kernel<Causal_conv1d_fwd_kernel_traits<128, 4>>") == "convolution"
    assert part_of("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>") == "softmax and loss"
    assert part_of("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32") == "matrix products"
    assert part_of("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>") == "optimiser"
    assert part_of("Memcpy HtoD (Pageable -> Device)") == "copies and fills"
    assert part_of("void RNN_blockPersist_fp_GRU<float, float, float, 64>") == "GRU"


@pytest.mark.parametrize("name", ["SIGMA", "Mamba4Rec"])
def test_a_released_design_learns_from_all_its_parameters(name: str, make: Callable[..., Any]) -> None:
    rival = make(f"released:{name}")
    batch = rival.batch()
    loss = rival.model.calculate_loss(batch)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(math.log(ITEMS + 1), rel=0.2)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in rival.model.parameters())
    assert rival.model.full_sort_predict(batch).shape == (len(batch), rival.model.n_items)
    assert rival.model.predict(batch).shape == (len(batch),)


def test_the_released_design_pays_for_padding_and_ours_does_not(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    positions: list[int] = []
    scan = Mamba._scan

    def counted(block: Mamba, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        positions.append(x.shape[0] * x.shape[1])
        return scan(block, x, *rest)

    monkeypatch.setattr(Mamba, "_scan", counted)
    rival, ours = make("released:SIGMA"), make("SIGMA")
    batch = rival.batch()
    assert batch[rival.model.ITEM_SEQ].shape == (len(batch), LENGTH)
    rival.model.calculate_loss(batch)
    assert positions == [len(batch) * LENGTH] * 2
    positions.clear()
    batch = ours.batch()
    ours.model.calculate_loss(batch)
    assert sum(positions) < len(batch) * LENGTH


@pytest.mark.parametrize(
    ("name", "settings"),
    [("SIGMA", {"form": "released", "flip": "padded", "fe_conv": "conv"}), ("Mamba4Rec", {}), ("SIGMA", None)],
)
def test_a_released_design_scores_as_our_model_of_the_same_weights(
    name: str, settings: dict[str, Any] | None, make: Callable[..., Any]
) -> None:
    settings = (
        {"form": "released", "flip": "padded", "fe_conv": "conv", "num_layers": 2} if settings is None else settings
    )
    ours, rival = make(name, **settings), make(f"released:{name}", **settings)
    weights = {}
    for key, tensor in ours.model.state_dict().items():
        for old, new in RENAMED if name == "SIGMA" else (RENAMED[0], (".mamba.", ".block.block.")):
            key = key.replace(old, new)
        weights[key] = tensor
    weights["item_embedding.weight"][0] = 0  # theirs computes what padding is embedded as; ours sees zeros there
    rival.model.load_state_dict(weights)
    lengths = torch.tensor([1, 2, 5, 6, LENGTH])
    items = torch.randint(1, ours.model.n_items, (len(lengths), LENGTH)) * (torch.arange(LENGTH) < lengths[:, None])
    batch = Interaction({ours.model.ITEM_SEQ: items, ours.model.ITEM_SEQ_LEN: lengths})
    scores = [each.model.eval().full_sort_predict(batch) for each in (rival, ours)]
    rows = slice(None) if ours.config["num_layers"] == 1 else slice(-1, None)  # a second layer meets padding's output
    torch.testing.assert_close(scores[0][rows], scores[1][rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--models=released:SASRec", "choose among released:SIGMA, released:Mamba4Rec"),
        ("--models=SIGMO", "SIGMO"),
        ("--MAX_ITEM_LIST_LENGHT=5", "MAX_ITEM_LIST_LENGTH"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    option: str, reason: str, script: Callable[[str], ModuleType], data_path: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--data_path={data_path}", "--dataset=tiny", *QUICK, option])
    assert script("gpu").main() == 2
    assert reason in capsys.readouterr().err
