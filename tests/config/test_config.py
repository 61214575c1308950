"""Config: where values come from, and what is refused with which line."""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from recbole.model.sequential_recommender import FPMC, GRU4Rec, SASRec
from recbole.utils import InputType, dataset_arguments

from recbole_sigma.config.config import Config, properties_path
from recbole_sigma.errors import UserError
from recbole_sigma.registry import find_model, model_names


class WithChoices(GRU4Rec):
    """A model that names the values of one of its settings."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"loss_type": ("CE",)}


def config(model: str | type = "GRU4Rec", dataset: str = "ml-100k", **settings: Any) -> Config:
    return Config(model, dataset, settings=settings)


def write_yaml(folder: Path, text: str, name: str = "given.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- where values come from


def test_our_protocol_stands_over_recboles_defaults() -> None:
    made = config()
    assert made["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert made["eval_args"]["order"] == "TO"
    assert made["eval_args"]["mode"] == {"valid": "full", "test": "full"}
    assert made["metrics"] == ["Hit", "NDCG", "MRR"]
    assert (made["valid_metric"], made["topk"], made["seed"]) == ("NDCG@10", [10], 2020)
    assert made["hidden_size"] == 128, "RecBole's own value for its own model"


def test_settings_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    first = write_yaml(tmp_path, "epochs: 1\nseed: 1\nlearning_rate: 1e-3\n", "first.yaml")
    second = write_yaml(tmp_path, "seed: 2\nlearning_rate: 2e-3\n", "second.yaml")
    made = Config("GRU4Rec", "ml-100k", config_files=[first, str(second)], settings={"learning_rate": 3e-3})
    assert (made["epochs"], made["seed"], made["learning_rate"]) == (1, 2, 3e-3)


def test_a_call_never_looks_at_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--epochs=7", "--nonsense", "x"])
    assert config()["epochs"] == 300


def test_text_is_never_evaluated() -> None:
    code = "__import__('os').getcwd()"
    assert config(checkpoint_dir=code)["checkpoint_dir"] == code


def test_two_configs_share_nothing(tmp_path: Path) -> None:
    names = list(dataset_arguments)
    first, second = config(), config()
    first["metrics"].append("Recall")
    first["eval_args"]["split"]["LS"] = "test_only"
    assert second["metrics"] == config()["metrics"] == ["Hit", "NDCG", "MRR"]
    assert config()["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert dataset_arguments == names, "RecBole adds a data set's keys to its module's list"


def test_one_key_of_eval_args_leaves_the_others() -> None:
    made = config(eval_args={"mode": "uni100"})
    assert made["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert made["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}


def test_bpr_brings_its_negatives_and_ce_has_none() -> None:
    assert config(loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"
    assert config(loss_type="BPR")["MODEL_INPUT_TYPE"] == InputType.PAIRWISE
    assert config(FPMC)["train_neg_sample_args"]["sample_num"] == 1, "a model that only knows pairs"
    assert config(loss_type="CE")["train_neg_sample_args"]["distribution"] == "none"


def test_settings_repeat_the_config(tmp_path: Path) -> None:
    made = config(SASRec, loss_type="BPR", n_layers=3, learning_rate=1e-4, use_gpu=False, eval_args={"mode": "full"})
    dumped = write_yaml(tmp_path, yaml.safe_dump(made.settings()))
    again = Config("SASRec", "ml-100k", config_files=[dumped])
    assert again.final_config_dict == made.final_config_dict
    assert again.settings() == made.settings()


def test_settings_name_the_folder_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    made = config(dataset="mine", data_path=str(tmp_path))
    assert made["data_path"] == str(tmp_path / "mine")
    assert made.settings()["data_path"] == str(tmp_path)


def test_values_of_numpy_and_paths_become_plain(tmp_path: Path) -> None:
    made = config(seed=np.int64(3), learning_rate=np.float32(0.5), topk=(5, 10), checkpoint_dir=tmp_path)
    settings = made.settings()
    assert (settings["seed"], settings["learning_rate"], settings["topk"]) == (3, 0.5, [5, 10])
    assert settings["checkpoint_dir"] == str(tmp_path)
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_every_file_in_properties_is_read_and_allowed() -> None:
    for file in sorted((properties_path() / "model").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        settings = config(find_model(file.stem), **values).settings()
        assert {key: settings[key] for key in values} == values


# --- the machine


def test_use_gpu_false_means_cpu_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert config(use_gpu=False)["device"] == torch.device("cpu")
    assert config(use_gpu=False)["single_spec"] is True
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_use_gpu_true_without_cuda_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config(use_gpu=True)["device"] == torch.device("cpu")


def test_gpu_id_counts_the_gpus_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert config()["device"] == torch.device("cuda")
    assert config(gpu_id=1)["device"] == torch.device("cuda", 1)
    assert chosen == [1]
    with pytest.raises(UserError, match=r"^gpu_id must be less than 2, the GPUs here, got '2'$"):
        config(gpu_id="2")


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"learnin_rate": 0.1}, "unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        ({"max_item_list_length": 9}, "unknown setting 'max_item_list_length'; did you mean 'MAX_ITEM_LIST_LENGTH'?"),
        ({"qqqq": 1}, "unknown setting 'qqqq'"),
        ({"eval_args": {"ordr": "TO"}}, "unknown 'ordr' in eval_args; did you mean 'order'?"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": -1}, "learning_rate must be greater than 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number, got true"),
        ({"epochs": None}, "epochs must be a whole number, got nothing"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"train_batch_size": -4}, "train_batch_size must be at least 1, got -4"),
        ({"MAX_ITEM_LIST_LENGTH": 0}, "MAX_ITEM_LIST_LENGTH must be at least 1, got 0"),
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
        ({"threads": "two"}, "threads must be a whole number, got 'two'"),
        ({"topk": "ten"}, "topk must be a whole number or a list of them, got 'ten'"),
        ({"topk": []}, "topk must be a whole number or a list of them, got []"),
        ({"topk": [10, 0]}, "topk must be at least 1, got [10, 0]"),
        ({"use_gpu": 1}, "use_gpu must be true or false, got 1"),
        ({"checkpoint_dir": 5}, "checkpoint_dir must be the path of a folder, got 5"),
        ({"eval_args": "full"}, "eval_args must be a mapping such as {name: value}, got 'full'"),
        ({"eval_args": None}, "eval_args must be a mapping such as {name: value}, got nothing"),
        ({"eval_args": {"mode": "some"}}, "the mode [some] in eval_args is not supported."),
        ({"time_order": "exactly"}, "time_order must be one of exact, recbole, got 'exactly'"),
        ({"loss_type": "MSE"}, "loss_type must be one of CE, BPR, got 'MSE'"),
        ({"dropout_prob": 1.0}, "dropout_prob must be at least 0 and less than 1, got 1.0"),
        ({"metrics": ["Hits"]}, "metrics: There is no metric named 'Hits'"),
        ({"eval_args": {"mode": "uni"}}, "eval_args: invalid literal for int() with base 10: ''"),
        (
            {"valid_metric": "NDCG@20"},
            "valid_metric must be one that metrics and topk give (Hit@10, NDCG@10, MRR@10), got 'NDCG@20'",
        ),
        ({"seed": torch.nn.ReLU()}, "seed must be a plain value (number, text, list, mapping), got a ReLU"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        config(**settings)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1},
        {"topk": 5, "valid_metric": "ndcg@5"},
        {"metrics": "NDCG"},
        {"gpu_id": 0},
        {"user_inter_num_interval": "[5,inf)"},
        {"load_col": None},
        {"load_col": {"inter": ["user_id"]}},
        {"threads": 2},
        {"encoding": "utf-8"},
    ],
)
def test_what_recbole_takes_is_taken(settings: dict[str, Any]) -> None:
    made = config(**settings).settings()
    assert {key: made[key] for key in settings} == settings


def test_a_fraction_may_stand_where_recbole_writes_a_whole_number() -> None:
    assert config("FEARec", global_ratio=0.6)["global_ratio"] == 0.6


def test_a_models_own_choices_are_checked() -> None:
    with pytest.raises(UserError, match=r"^loss_type must be one of CE, got 'BPR'$"):
        config(WithChoices, loss_type="BPR")


def test_an_unknown_model_is_one_line_with_the_nearest_name() -> None:
    for wrong in ("GRU4Recc", "gru4rec"):
        with pytest.raises(UserError) as caught:
            config(wrong)
        assert str(caught.value) == f"unknown model {wrong!r}; did you mean 'GRU4Rec'?"
    assert {"GRU4Rec", "SASRec", "BERT4Rec", "FEARec"} <= set(model_names())
    assert all(find_model(name).__name__ == name for name in model_names())


def test_an_unknown_data_set_is_one_line_with_the_place_and_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "amazon-beauty").mkdir()
    with pytest.raises(UserError) as caught:
        config(dataset="amazon-beaty", data_path=str(tmp_path))
    wanted = tmp_path / "amazon-beaty"
    line = f"unknown data set 'amazon-beaty': there is no folder {str(wanted)!r}; did you mean 'amazon-beauty'?"
    assert str(caught.value) == line
    with pytest.raises(UserError, match=r"did you mean 'ml-100k'\?$"):
        config(dataset="ml100k")
    with pytest.raises(UserError, match=r"; --data_path=FOLDER says where data sets are$"):
        config(dataset="zzz", data_path=str(tmp_path / "none"))


def test_a_checkpoint_can_have_a_config_without_its_data(tmp_path: Path) -> None:
    made = Config("GRU4Rec", "gone", settings={"data_path": str(tmp_path)}, need_data=False)
    assert made["data_path"] == str(tmp_path / "gone")


def test_ml_100k_is_recboles_copy_unless_the_user_has_one(tmp_path: Path) -> None:
    assert Path(config(data_path=str(tmp_path))["data_path"], "ml-100k.inter").is_file()
    (tmp_path / "ml-100k").mkdir()
    assert config(data_path=str(tmp_path))["data_path"] == str(tmp_path / "ml-100k")


def test_negatives_that_the_loss_does_not_use_are_refused() -> None:
    with pytest.raises(UserError, match=r"train_neg_sample_args .* should be None when the loss_type is CE"):
        config(train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
