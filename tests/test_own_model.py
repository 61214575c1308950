"""examples/own_model: a class outside the package works everywhere a name does."""

import csv
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import cli, load_data_and_model, run
from recbole_sigma.config.config import Config
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.store import run_key
from recbole_sigma.registry import find_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_model"
SMALL = {
    "use_gpu": "False", "MAX_ITEM_LIST_LENGTH": "6", "epochs": "1", "user_inter_num_interval": "[0,22]",
    "state": "ERROR", "threads": "1",
}  # fmt: skip
OPTIONS = [f"--{name}={value}" for name, value in SMALL.items()]
RECENT, MEAN = "recent_items:RecentItems", "mean_of_items:MeanOfItems"

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, a copy of the example in a folder with a blank in its name; its modules are forgotten."""
    folder = tmp_path / "my models"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "saved", "log*"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    for name in ("recent_items", "mean_of_items"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [RECENT, MEAN])
def test_a_class_trains_and_is_loaded_by_name_and_by_class(name: str, refused: Refused) -> None:
    model_class = find_model(name)
    settings = {**SMALL, "use_gpu": False, "MAX_ITEM_LIST_LENGTH": 6, "epochs": 1, "threads": 1}
    result = run(model_class, "ml-100k", config_dict=settings)
    by_name = run(name, "ml-100k", config_dict=settings)
    assert result.test == by_name.test and {*result.test} == {"hit@10", "ndcg@10", "mrr@10"}
    assert type(load_data_and_model(result, model=name).model) is model_class
    config = (result.folder / "config.yaml").read_text()
    assert f"model: {name}" in config
    del sys.modules[name.partition(":")[0]]
    with pytest.raises(UserError, match=f"--model={name}"):
        load_data_and_model(result)
    refused("train", f"--resume={result.folder}", names=[f"--model={name}"])
    assert name.partition(":")[0] not in sys.modules, "it was imported because a file names it"


def test_defaults_come_with_the_class_and_a_misspelt_setting_is_refused(
    refused: Refused, capsys: pytest.CaptureFixture
):
    assert Config(RECENT, "ml-100k")["decay"] == 0.5 and Config(MEAN, "ml-100k")["embedding_size"] == 32
    refused("train", f"--model={RECENT}", "--deacy=0.2", names=["'deacy'", "'decay'"])
    refused("train", f"--model={RECENT}", "--decay=x", names=["decay", "a number", "'x'"])
    assert cli.main(["models", RECENT, "--items=10"]) == 0
    shown = capsys.readouterr().out
    assert "decay" in shown and f"{11 * 32 + 2 * 32 + 32 * 32 + 32:,} parameters on 10 items" in shown


def test_one_comparison_has_own_models_beside_the_others(example: Path) -> None:
    names = f"{RECENT},{MEAN},SASRec"
    assert cli.main(["compare", f"--model={names}", "--out=new folder/table", *OPTIONS]) == 0
    rows = [*csv.DictReader((example / "new folder" / "table.csv").open(encoding="utf-8"))]
    assert [row["label"] for row in rows] == ["RecentItems", "MeanOfItems", "SASRec"]


def test_an_edited_model_is_another_run(example: Path) -> None:
    before = run_key(Config(RECENT, "ml-100k"))
    assert run_key(Config(RECENT, "ml-100k")) == before
    (example / "recent_items.py").write_text((example / "recent_items.py").read_text() + "\n# edited\n")
    assert run_key(Config(RECENT, "ml-100k")) != before


def test_an_experiment_and_a_sweep_run_the_class_once_it_is_confirmed(refused: Refused, capsys: Any):
    refused("experiment", "decay.yaml", *OPTIONS, names=["decay.yaml:2", f"--model={RECENT}"])
    refused("experiment", "decay.yaml", f"--model={RECENT},{MEAN}", names=[MEAN, "decay.yaml"])
    assert cli.main(["experiment", "decay.yaml", f"--model={RECENT}", *OPTIONS]) == 0
    assert cli.main(["tune", f"--model={RECENT}", "--params_file=decay.test", *OPTIONS]) == 0
    shown = capsys.readouterr().out
    assert "decay 0.8" in shown and "Chosen: decay=" in shown
    folder = next(Path("saved").glob("tune-*"))
    refused("tune", f"--resume={folder}", names=[f"--model={RECENT}"])


@pytest.mark.parametrize(
    ("file", "name", "named"),
    [
        ("", "no_such:Model", ["no module 'no_such'"]),
        ("", "recent_items.deeper:Model", ["no module 'recent_items.deeper'"]),
        ("class Model:\n  def f(:\n", "broken:Model", ["SyntaxError", "broken.py:2"]),
        ("class Modell: ...\n", "broken:Model", ["broken.py", "'Modell'"]),
        ("Model = 3\n", "broken:Model", ["broken:Model", "SequentialRecommender"]),
        ("import nothing_of_this_name\nclass Model: ...\n", "broken:Model", ["nothing_of_this_name", "broken.py:1"]),
        ("", "my model:M", ["package.module:Class", "'my model:M'"]),
        ("", ":", ["package.module:Class"]),
    ],
)
def test_a_module_that_cannot_be_right_is_one_line(file: str, name: str, named: list[str], refused: Refused) -> None:
    Path("broken.py").write_text(file)
    sys.modules.pop("broken", None)
    refused("train", f"--model={name}", *OPTIONS, names=named)
