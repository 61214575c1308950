"""The scripts of benchmarks/ on tiny data, on CPU. Figures are not looked at, except that they are possible."""

import csv
import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.model import chunks

Script = Callable[[str], ModuleType]  # the fixture `script`; call and contestant; epoch
Call = Racer = Callable[..., Any]
Epoch = Callable[..., dict[str, Any]]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LENGTH, ITEMS, BATCH = 10, 20, 64
SMALL_DATA = ("--limit=600", "--items=30", "--tokens=40", "--steps=1", "--rounds=1", "--threads=1")
SMALL_MODEL = ("--hidden_size=16", f"--MAX_ITEM_LIST_LENGTH={LENGTH}", "--eval_batch_size=16")
QUICK = ("--device=cpu", "--rounds=1", "--steps=1", "--warm_up=1", f"--batch={BATCH}", "--threads=1")
# Names of parameters in our models, and in the released designs.
RENAMED = (
    ("embedding_norm.", "norm."), (".mamba.", ".block.mamba.block."), (".gate.", ".block.gates."),
    (".fe_gru.", ".block."), (".mixing.", ".block.mixing."), (".projection.", ".block.projection."),
)  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`script(name)` -> a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def call(script: Script, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call(name, option, ...)` -> what `main` of a script returns."""

    def main(name: str, *options: str) -> Any:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        return script(name).main()

    return main


@pytest.fixture
def data_path(write_inter: Callable[..., Path]) -> str:
    """Data set `tiny`: 24 users of 3 to 14 items."""
    rows = [(user, (user * 7 + k * (1 + user % 3)) % ITEMS, k) for user in range(24) for k in range(3 + user % 12)]
    return str(write_inter(rows).parents[1])


@pytest.fixture
def epoch(call: Call, data_path: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`epoch(option, ...)` -> the JSON file that the script writes."""

    def main(*options: str) -> dict[str, Any]:
        own = (f"--data_path={data_path}", "--dataset=tiny", f"--out={tmp_path / 'out.json'}", *QUICK, *SMALL_MODEL)
        assert call("epoch", *own, *options) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return main


@pytest.fixture
def contestant(script: Script, data_path: str) -> Racer:
    """`contestant(name, setting=value, ...)` -> a Contestant on the tiny data."""

    def make(name: str, **settings: Any) -> Any:
        sizes = {"hidden_size": 16, "MAX_ITEM_LIST_LENGTH": LENGTH, "train_batch_size": BATCH}
        module = script("contestants")
        data = module.Data("tiny", {"data_path": data_path, "use_gpu": False, **sizes, **settings})
        return module.Contestant(name, data)

    return make


def test_the_files_that_makefile_and_on_gpu_name_exist() -> None:
    text = "".join(path.read_text() for path in (BENCHMARKS.parent / "Makefile", BENCHMARKS / "on_gpu.sh"))
    named = re.findall(r"(?:tests|benchmarks)/[\w/]+\.(?:py|sh)", text)
    assert len(named) > 5
    assert [name for name in named if not (BENCHMARKS.parent / name).exists()] == []


def test_every_operation_is_compared_with_a_rival(call: Call, capsys: Any) -> None:
    shapes = {"scan": "2x12x4x2", "convolution": "2x5x8", "gru": "3x4x8", "softmax": "4x9x8"}
    for operation, shape in shapes.items():
        call("operations", operation, f"--shapes={shape}", "--rounds=1", "--seconds=0.001", "--threads=1")
        table = capsys.readouterr().out.split(f"{operation} {shape}")[1].splitlines()[2:]
        ours, *others = (float(row.split()[-1]) for row in table)
        assert ours == 1 and others and min(others) > 0


def test_each_stage_of_a_data_set_is_measured(script: Script, tmp_path: Path) -> None:
    data = script("data")
    data.write_synthetic(tmp_path, 1000)
    seconds = {part: data.measure(part, tmp_path) for part in data.PARTS}
    assert {part for part, (dataset_s, _) in seconds.items() if dataset_s > 0} == {*data.PARTS} - {"imports"}
    assert {part for part, (_, epoch_s) in seconds.items() if epoch_s > 0} == {"ours", "ours, padded", "recbole"}


def test_attention_takes_the_memory_of_its_copies() -> None:
    heads, length = 2, 2000
    # One thread: at short lengths the workspaces of all threads would be a third of the figure.
    options = ("--items=30", f"--tokens={length}", "--steps=1", "--threads=1", "--one", "SASRec", str(length))
    command = [sys.executable, str(BENCHMARKS / "length.py"), *options]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    copy_mb = heads * length * length * 4 / 1e6
    # Weights, the factors of their dropout and the product, in each of two layers; some more in the backward pass.
    assert 6 * copy_mb < figures["memory_mb"] < 24 * copy_mb
    assert figures["steps"] == 1


def test_a_small_race_over_lengths_gives_table_csv_and_plot(call: Call, capsys: Any, tmp_path: Path) -> None:
    figures, plot = tmp_path / "length.csv", tmp_path / "length.png"
    options = (f"--csv={figures}", f"--plot={plot}", "--models=SIGMA,Mamba4Rec:sequence,SASRec", "--lengths=20")
    assert call("length", *SMALL_DATA, *options) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row[1:-1]] for row in table[2:]]
    assert [cell[:3] for cell in cells] == [["20", "2", name] for name in ("SIGMA", "Mamba4Rec:sequence", "SASRec")]
    assert cells[2][5:] == ["100.0%", "100.0%"]
    rows = list(csv.DictReader(figures.read_text().splitlines()))
    assert [row["train_mode"] for row in rows] == ["prefix", "sequence", "prefix"]
    assert all(float(row["seconds"]) > 0 and not row["failure"] for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--lengths=5", "--limit=0.1"), "> 0.1 s"),
        pytest.param(
            ("--lengths=3000", "--tokens=3000", "--memory=0.1"), "out of memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only"),
        ),
    ],
)  # fmt: skip
def test_the_table_shows_which_limit_a_model_exceeds(
    options: tuple[str, ...], shown: str, call: Call, capsys: Any
) -> None:
    assert call("length", "--models=SASRec", *SMALL_DATA, *options) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "option", "reasons"),
    [
        ("length", "--models=SASREC", ("'SASREC'", "SASRec")),
        ("length", "--lengths=50,x", ("--lengths", "50,x")),
        ("length", "--rounds=0", ("--rounds", "at least 1")),
        ("length", "--csv=no-such-directory/length.csv", ("--csv", "no-such-directory")),
        ("operations", "scam", ("scan", "gru")),
        ("epoch", "--models=released:SASRec", ("released:SIGMA", "released:Mamba4Rec")),
        ("epoch", "--models=SIGMO", ("SIGMO", "SIGMA")),
        ("epoch", "--MAX_ITEM_LIST_LENGHT=5", ("MAX_ITEM_LIST_LENGTH",)),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(
    name: str, option: str, reasons: tuple[str, ...], call: Call, capsys: Any
) -> None:
    try:
        status = call(name, option, *(QUICK if name == "epoch" else ()))
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr().err
    assert status == 2 and all(reason in said for reason in reasons)


def test_the_race_measures_all_and_records_its_conditions(epoch: Epoch, capsys: Any) -> None:
    rivals = ["released:SIGMA", "released:Mamba4Rec", "recbole:SASRec"]
    models = ",".join(["SIGMA", "SASRec", "Mamba4Rec:sequence", *rivals])
    results = epoch(f"--models={models}", "--rival=released:SIGMA", "--epochs=1", "--length_ratio=1.25,100")
    ours = [f"{name}, length_ratio {ratio}" for name in ("SIGMA", "SASRec") for ratio in ("1.25", "100")]
    assert [each["label"] for each in results["contestants"]] == [*ours, "Mamba4Rec:sequence", *rivals]
    for each in results["contestants"]:
        seconds = each["step_seconds"] + each["epoch_seconds"] + each["inference_seconds"]
        assert len(seconds) == 3 and all(0 < one < math.inf for one in seconds)
        assert each["training_mb"] is None  # measured on CUDA only
    assert len(results["data"]["sha256"]) == 64
    assert torch.__version__.startswith(results["versions"]["torch"])  # PyPI leaves +cu130 out
    assert results["backend"]["released"] == "our block, not mamba-ssm"
    assert results["command"].startswith("python benchmarks/epoch.py --data_path")
    whole = {each["label"]: each["epoch_seconds"][0] for each in results["contestants"]}
    shown = capsys.readouterr().out
    for label in ours[:2]:
        assert f"{label}: {whole[label] / whole['released:SIGMA']:.3f} of released:SIGMA; at most 1/3" in shown
    assert "no result" in shown


@pytest.mark.parametrize("model", ["SIGMA", "SIGMA:sequence", "released:SIGMA", "recbole:SASRec"])
def test_the_profile_shows_stages_purposes_and_operators(
    model: str, epoch: Epoch, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SPARE", 0)  # several chunks in these small batches, too
    results = epoch(f"--profile={model}")
    assert list(results["stages_ms"]) == [
        "data", "to the device", "encoder, forward", "softmax, both ways", "encoder, backward", "optimiser",
    ]  # fmt: skip
    assert all(ms > 0 for ms in results["stages_ms"].values())
    assert math.isclose(sum(results["purposes_ms"].values()), results["sum_ms"])
    assert {"matrix products", "optimiser", "dropout"} <= {*results["purposes_ms"]}
    assert ("scan" in results["purposes_ms"]) == ("SIGMA" in model)
    assert results["chunks_per_step"] is None or results["chunks_per_step"] > 1
    assert results["top"][0]["ms"] > 0
    assert "encoder, backward" in capsys.readouterr().out


def test_the_purpose_of_a_kernel_follows_from_its_name(script: Script) -> None:
    purpose_of = script("where_time_goes").purpose_of
    assert purpose_of("void selective_scan_bwd_kernel<Selective_Scan_bwd_kernel_traits<32, 4>>") == "scan"
    assert purpose_of("void causal_conv1d_fwd_kernel<Causal_conv1d_fwd_kernel_traits<128, 4>>") == "convolution"
    assert purpose_of("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>") == "softmax and loss"
    assert purpose_of("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32") == "matrix products"
    assert purpose_of("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>") == "optimiser"
    assert purpose_of("Memcpy HtoD (Pageable -> Device)") == "copies and fills"
    assert purpose_of("void RNN_blockPersist_fp_GRU<float, float, float, 64>") == "GRU"


@pytest.mark.parametrize("name", ["SIGMA", "Mamba4Rec"])
def test_a_released_design_learns_from_all_its_parameters(name: str, contestant: Racer) -> None:
    rival = contestant(f"released:{name}")
    batch = next(rival.batches)
    loss = rival.model.calculate_loss(batch)
    assert loss.item() == pytest.approx(math.log(ITEMS + 1), rel=0.2)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in rival.model.parameters())
    assert rival.model.full_sort_predict(batch).shape == (len(batch), rival.model.n_items)


def test_the_released_design_computes_padding_and_ours_does_not(contestant: Racer, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks, "SPARE", 0)
    positions: list[int] = []
    scan = Mamba._scan

    def counted(block: Mamba, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        positions.append(x.shape[0] * x.shape[1])
        return scan(block, x, *rest)

    monkeypatch.setattr(Mamba, "_scan", counted)
    rival, ours = contestant("released:SIGMA"), contestant("SIGMA")
    batch = next(rival.batches)
    assert batch[rival.model.ITEM_SEQ].shape == (len(batch), LENGTH)
    rival.model.calculate_loss(batch)
    assert positions == [len(batch) * LENGTH] * 2
    positions.clear()
    batch = next(ours.batches)
    ours.model.calculate_loss(batch)
    assert sum(positions) < len(batch) * LENGTH


@pytest.mark.parametrize(("name", "layers"), [("SIGMA", 1), ("SIGMA", 2), ("Mamba4Rec", 1)])
def test_a_released_design_scores_as_our_model_of_the_same_weights(name: str, layers: int, contestant: Racer) -> None:
    settings = {"num_layers": layers}
    settings |= {"form": "released", "flip": "padded", "fe_conv": "conv"} if name == "SIGMA" else {}
    ours, rival = contestant(name, **settings), contestant(f"released:{name}", **settings)
    weights = {}
    for key, tensor in ours.model.state_dict().items():
        for old, new in RENAMED if name == "SIGMA" else (RENAMED[0], (".mamba.", ".block.block.")):
            key = key.replace(old, new)
        weights[key] = tensor
    weights["item_embedding.weight"][0] = 0  # the released code embeds padding; our model has zeros there
    rival.model.load_state_dict(weights)
    lengths = torch.tensor([1, 2, 5, 6, LENGTH])
    items = torch.randint(1, ours.model.n_items, (len(lengths), LENGTH)) * (torch.arange(LENGTH) < lengths[:, None])
    batch = Interaction({ours.model.ITEM_SEQ: items, ours.model.ITEM_SEQ_LEN: lengths})
    scores = [each.model.eval().full_sort_predict(batch) for each in (rival, ours)]
    rows = slice(None) if layers == 1 else slice(-1, None)  # a second layer reads the first one's output for padding
    torch.testing.assert_close(scores[0][rows], scores[1][rows], rtol=1e-4, atol=1e-6)


def test_every_part_of_loading_reads_the_file_of_the_benchmark(script: Script, tmp_path: Path) -> None:
    loading = script("loading")
    loading.write_synthetic(tmp_path / "raw.csv", 3000)
    assert all(loading.measure(part, tmp_path) > 0 for part in loading.OURS + loading.RIVALS)
