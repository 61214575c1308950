"""An exported model recommends what `recommend` does, with any number of histories of any length."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from recbole_sigma import Recommender, cli, run
from recbole_sigma.config.config import Config
from recbole_sigma.inference.export import FILES, TopK, export, write_model
from recbole_sigma.model.mamba4rec import Mamba4Rec
from recbole_sigma.registry import build_model
from recbole_sigma.runs.reader import LoadedModel
from tests.helpers.models import N_ITEMS, SMALL_SSM, Items, refused
from tests.helpers.runs import OUR_SIZE, TINY

IDS = ["[PAD]", *(f"item {number}" for number in range(1, N_ITEMS))]
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("SIGMA", {"form": "paper", "head": "history", "r": 2}),
    ("SIGMA", {"form": "released", "num_layers": 2, "flip": "padded", "share_mamba": False}),
    ("Mamba4Rec", {"num_layers": 2}), ("RecMamba", {"head": "history"}), ("ECHO", {"num_layers": 2}), ("SASRec", {}),
    ("BERT4Rec", {"n_layers": 1}), ("BERT4Rec", {"n_layers": 1, "by_length": False}), ("LinRec", {}),
    ("SIGMA", {"flip_ranges": [0, 2]}), ("GRU4Rec", {}), ("EMARec", {"co_occurrence": 0.3, "head": "history"}),
]  # fmt: skip


def recommender(name: str, longest: int = 12, **settings: Any) -> Recommender:
    """A model whose parameters are all random: none is 0 or 1, as some are before training."""
    ssm = SMALL_SSM if name in ("SIGMA", "Mamba4Rec", "RecMamba", "ECHO") else {}
    given = {"use_gpu": False, "hidden_size": 16, "MAX_ITEM_LIST_LENGTH": longest, **ssm, **settings}
    config = Config(name, "ml-100k", settings=given)
    torch.manual_seed(1)
    model = build_model(config, Items()).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if "co_occurrence" in settings:
        model.co_occurrence.neighbours.random_(1, N_ITEMS)
        model.co_occurrence.counts.uniform_()
    counts = torch.randperm(N_ITEMS).tolist()
    return Recommender(LoadedModel(config, model, IDS, counts, {}))


def assert_same_lists(predict: Any, rec: Recommender, rows: list[list[int]], k: int, exclude_seen: bool = True) -> None:
    history = np.zeros((len(rows), max(1, *map(len, rows))), np.int64)
    for number, row in enumerate(rows):
        history[number, : len(row)] = row
    scores, items = predict(history)
    expected = rec.recommend([[IDS[item] for item in row if item] for row in rows], k, exclude_seen)
    for own, numbers, best in zip(scores, items, expected, strict=True):
        assert [IDS[number] for number in numbers[: len(best)]] == [item for item, _ in best]
        np.testing.assert_allclose(own[: len(best)], [score for _, score in best], atol=1e-4, rtol=1e-5)
        assert not numbers[len(best) :].any() and (own[len(best) :] == -np.inf).all()


@pytest.mark.parametrize(("name", "settings"), MODELS)
def test_onnxruntime_recommends_what_we_do(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rec = recommender(name, **settings)
    predict = write_model(TopK(rec, 7, exclude_seen=True).eval(), tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    for lengths in ([1], [12], [1, 2], [30], [3, 11, 12, 13, 1, 40, 7], [5] * 33):
        assert_same_lists(predict, rec, [random.integers(1, N_ITEMS, each).tolist() for each in lengths], 7)
    assert_same_lists(predict, rec, [[], [4, 4], [0, 3, 0, 9], [*range(1, 37)]], 7)  # no, repeated, unknown, most items


@pytest.mark.parametrize(
    ("name", "longest"), [("SIGMA", 12), ("SASRec", 12), ("Mamba4Rec", 1), ("ECHO", 2), ("BERT4Rec", 12)]
)
def test_torch_export_recommends_what_we_do(name: str, longest: int, tmp_path: Path) -> None:
    rec = recommender(name, longest)
    predict = write_model(TopK(rec, 100, exclude_seen=False).eval(), tmp_path / "model.pt2")
    for rows in ([[3]], [[1, 2, 3, 0, 5], []], [[*range(1, 39)], [7, 7]]):
        assert_same_lists(predict, rec, rows, 100, exclude_seen=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {**TINY, **OUR_SIZE, "epochs": 1, "checkpoint_dir": str(tmp_path_factory.mktemp("my-own-path"))}
    return run("Mamba4Rec", "ml-100k", settings=settings).folder


def test_the_directory_has_all_that_the_hub_and_our_recommender_read(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "exported"
    assert cli.main(["export", f"--checkpoint={trained}", "--format=torch", f"--out={out}", "--k=5"]) == 0
    files = {path.name for path in out.iterdir()}
    assert files == {"README.md", "config.json", "config.yaml", "item_info.json", "items.json", "model.pt2"} | {
        "model.safetensors"
    }
    histories = [["50", "181"], ["1"]]
    assert Recommender.load(out).recommend(histories) == Recommender.load(trained).recommend(histories)
    config = json.loads((out / "config.json").read_text())
    assert (config["model"], config["k"], config["exclude_seen"]) == ("Mamba4Rec", 5, True)
    texts = [(out / name).read_text() for name in ("README.md", "config.json", "config.yaml")]
    assert not [text for text in texts if "my-own-path" in text]

    _, front, text = texts[0].split("---\n", 2)
    (model,) = yaml.safe_load(front)["model-index"]
    (result,) = model["results"]
    recorded = json.loads((trained / "result.json").read_text())
    metrics = {each["name"]: (each["type"], each["value"]) for each in result["metrics"]}
    assert metrics["NDCG@10 (test)"] == ("ndcg@10", recorded["test"]["ndcg@10"])
    assert {*result["task"], *result["dataset"]} == {"type", "name"}
    assert recorded["protocol"]["ranking"] in text and recorded["dataset"]["sha256"] in text


@pytest.mark.parametrize("form", [*FILES])
def test_the_example_of_the_model_card_runs(
    form: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    assert export(trained, out, form, k=3) < 1e-5
    assert str(Path(__file__).parents[2]).encode() not in (out / FILES[form]).read_bytes()  # no path of this machine
    example = re.search(r"## Use\n\n((?: {4}.*\n|\n)+)", (out / "README.md").read_text())
    assert example
    monkeypatch.chdir(out)
    exec(re.sub("^    ", "", example[1], flags=re.M).replace('"A", "B"', '"50", "181"'), {})
    (best,) = Recommender.load(trained).recommend([["50", "181"]], k=3)
    assert capsys.readouterr().out.strip() == str([item for item, _ in best])


class Sorted(Mamba4Rec):
    """A model whose code depends on the values of a batch."""

    def forward(self, item_seq: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().forward(item_seq, lengths) * (2 if lengths.tolist()[0] > 3 else 1)


def test_mistakes_are_named_and_nothing_is_written(
    trained: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, new = tmp_path / "full", tmp_path / "new"
    full.mkdir()
    (full / "file").touch()
    run_here, to_new = f"--checkpoint={trained}", f"--out={new}"
    refused("export", run_here, f"--out={full}", names=["out", str(full)])
    refused("export", run_here, f"--out={full / 'file'}", names=["out", "file"])
    refused("export", run_here, names=["--out"])
    refused("export", run_here, to_new, "--format=tflite", names=["format", "tflite", "onnx", "torch"])
    refused("export", run_here, to_new, "--r=3", names=["--r"])
    refused("export", run_here, to_new, "--k=0", names=["k", "0"])
    refused("export", f"--checkpoint={full}", to_new, names=["checkpoint", str(full)])
    refused("export", run_here, f"--out={full / 'file' / 'x'}", "--format=torch", names=["out", "file"])
    monkeypatch.setattr("recbole_sigma.inference.export.find_spec", lambda name: None)
    refused("export", run_here, to_new, names=["onnxruntime", "recbole-sigma[export]"])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_model_that_cannot_be_exported_says_which_can(tmp_path: Path) -> None:
    with refused("NARM", "SIGMA", "SASRec"):
        write_model(TopK(recommender("NARM"), 3, exclude_seen=True), tmp_path / "model.pt2")
    own = recommender("Mamba4Rec")
    own.model.__class__ = Sorted
    with refused("Sorted", "torch.export"):
        write_model(TopK(own, 3, exclude_seen=True).eval(), tmp_path / "model.pt2")
