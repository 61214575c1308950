"""The models are RecBole models: it trains them, its names work here, what is refused is documented."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed

import recbole_sigma
from recbole_sigma.config.config import Config
from recbole_sigma.config.values import properties_path, schemas
from recbole_sigma.errors import UserError
from recbole_sigma.registry import find_model
from recbole_sigma.runs.result import RunResult
from tests.helpers.models import OURS
from tests.helpers.runs import TINY, environment

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "use_gpu": False, "show_progress": False, "MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 16, "epochs": 1,
    "user_inter_num_interval": "[0,22]", "state": "ERROR",
}  # fmt: skip


@pytest.fixture
def yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of SETTINGS as a file; RecBole writes into the working directory and reads `sys.argv`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    (tmp_path / "my settings.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return str(tmp_path / "my settings.yaml")


@pytest.mark.parametrize("name", OURS)
def test_recboles_config_loaders_and_trainer_train_our_models_with_their_defaults(name: str, yaml_file: str) -> None:
    recbole_sigma.register()
    model_class = find_model(name)
    config = RecBoleConfig(model=model_class, dataset="ml-100k", config_file_list=[yaml_file])
    ours = Config(name, "ml-100k", config_files=yaml_file)
    defaults = yaml.safe_load((properties_path() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {key: config[key] for key in defaults} == {key: ours[key] for key in defaults}
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, model_class(config, train_data.dataset).to(config["device"]))
    score, valid = trainer.fit(train_data, valid_data, verbose=False)
    test = trainer.evaluate(test_data)  # reads the checkpoint of the best epoch
    assert score == valid["mrr@10"] and 0 <= test["ndcg@10"] <= 1
    saved = torch.load(trainer.saved_model_file, weights_only=True)
    assert saved["config"]["model"] == name and saved["config"]["hidden_size"] == 16


SCRIPT = """
import json, sys
import recbole_sigma
recbole_sigma.register()
recbole_sigma.register()
from recbole.quick_start import objective_function, run_recbole
from recbole.trainer import HyperTuning
result = run_recbole(model="SIGMA", dataset="ml-100k", config_file_list=[sys.argv.pop()])
tuned = "model: Mamba4Rec\\ndataset: ml-100k\\n" + open("my settings.yaml").read()
open("tuned.yaml", "w").write(tuned)
open("space.test", "w").write("learning_rate choice [0.01, 0.001]\\n")
for algo in ("exhaustive", "bayes"):
    tuning = HyperTuning(objective_function, algo=algo, params_file="space.test",
                         fixed_config_file_list=["tuned.yaml"], max_evals=2)
    tuning.run()
    assert tuning.best_params["learning_rate"] in (0.01, 0.001)
print(json.dumps({key: dict(value) if "result" in key else float(value) for key, value in result.items()}))
"""


def test_run_recbole_and_hyper_tuning_find_our_models_by_name(yaml_file: str, tmp_path: Path) -> None:
    """In a process of their own: RecBole's loggers and the modules under its name would stay."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, yaml_file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {*result} == {*RunResult(Path(), 0, {}, {}).keys()}
    assert result["best_valid_score"] == result["best_valid_result"]["mrr@10"] and "hit@10" in result["test_result"]


def test_run_takes_recboles_names_and_answers_its_keys(yaml_file: str, tmp_path: Path) -> None:
    handlers, threads = logging.getLogger("recbole_sigma").handlers[:], torch.get_num_threads()
    changes = {"checkpoint_dir": str(tmp_path / "sävéd runs")}
    result = recbole_sigma.run(
        model="Mamba4Rec", dataset="ml-100k", config_file_list=yaml_file, config_dict=changes, configure_process=False
    )
    assert (logging.getLogger("recbole_sigma").handlers, torch.get_num_threads()) == (handlers, threads)
    assert result["best_valid_score"] == result.best_valid_score == result.valid["ndcg@10"]
    assert dict(result) == {
        "best_valid_score": result.valid["ndcg@10"], "valid_score_bigger": True,
        "best_valid_result": result.valid, "test_result": result.test,
    }  # fmt: skip
    with pytest.raises(KeyError):
        result["folder"]
    config, model, dataset, train, valid, test = recbole_sigma.load_data_and_model(result)
    assert config["MAX_ITEM_LIST_LENGTH"] == 6 and type(model).__name__ == "Mamba4Rec" and not model.training
    assert train.dataset.item_num == valid.dataset.item_num == test.dataset.item_num == dataset.item_num
    again = recbole_sigma.load_data_and_model(str(result.folder)).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert recbole_sigma.resume(result.folder) == result


def test_names_of_one_thing_are_not_mixed_and_threads_are_left_alone(yaml_file: str) -> None:
    for both in ({"config_dict": {"seed": 1}, "settings": {"seed": 2}}, {"config_files": [yaml_file]}):
        with pytest.raises(UserError, match="other names of config_file_list and config_dict"):
            recbole_sigma.run("SASRec", "ml-100k", yaml_file, **both)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"threads.*configure_process"):
        recbole_sigma.run("SASRec", "ml-100k", config_dict=TINY, configure_process=False)


def test_dir_shows_the_public_names() -> None:
    public = {"run", "resume", "register", "load_data_and_model", "Config", "UserError"}
    assert public <= {*dir(recbole_sigma)} & {*recbole_sigma.__all__}


def test_the_documentation_has_every_refused_setting_with_its_reason() -> None:
    lines = (ROOT / "docs" / "recbole.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("| `") and line.count("|") == 3]
    right = [f"| `{name}` | {line['unsupported']} |" for name, line in schemas().items() if "unsupported" in line]
    assert shown == right, "docs/recbole.md, last table: replace its rows by these:\n" + "\n".join(right)


def test_a_setting_that_a_model_of_ours_reads_must_exist() -> None:
    config = Config("SIGMA", "", need_data=False)
    with pytest.raises(UserError, match=r"'hiden_size'.*'hidden_size'"):
        config["hiden_size"]
    assert Config("Caser", "", need_data=False)["typo"] is None, "as in RecBole, on which its models rely"
