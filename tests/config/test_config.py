"""Config: where values come from, and what is refused with which line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from recbole.model.sequential_recommender import FPMC
from recbole.utils import InputType, dataset_arguments

from recbole_sigma.config.config import Config
from recbole_sigma.config.values import properties_path
from recbole_sigma.errors import UserError


def config(model: str | type = "GRU4Rec", dataset: str = "ml-100k", **settings: Any) -> Config:
    return Config(model, dataset, settings=settings)


# --- where values come from


def test_our_protocol_wins_over_recboles_defaults() -> None:
    made = config()
    protocol = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "full", "test": "full"}}
    assert {key: made["eval_args"][key] for key in protocol} == protocol
    assert made["metrics"] == ["Hit", "NDCG", "MRR"]
    assert (made["valid_metric"], made["topk"], made["seed"]) == ("NDCG@10", [10], 2020)
    assert made["hidden_size"] == 128, "RecBole's own value for its own model"


def test_settings_win_over_files_later_files_over_earlier_and_argv_is_unread(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--epochs=7", "--nonsense", "x"])
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 1\nseed: 1\nlearning_rate: 1e-3\n")
    second.write_text("seed: 2\nlearning_rate: 2e-3\n")
    made = Config("GRU4Rec", "ml-100k", config_files=[first, str(second)], settings={"learning_rate": 3e-3})
    assert (made["epochs"], made["seed"], made["learning_rate"]) == (1, 2, 3e-3)


@pytest.mark.parametrize("model", ["EMARec", "ECHO"])
@pytest.mark.parametrize("dataset", ["amazon-beauty", "amazon-sports-outdoors"])
def test_the_settings_of_the_best_models_are_accepted(model: str, dataset: str) -> None:
    file = properties_path() / "experiment" / f"best-{dataset}.yaml"
    assert Config(model, "ml-100k", [str(file)])["head"] == "history"


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


def test_settings_repeat_the_config_with_the_directory_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    given: dict[str, Any] = {"loss_type": "BPR", "n_layers": 3, "learning_rate": 1e-4, "eval_args": {"mode": "full"}}
    made = config("SASRec", "mine", data_path=str(tmp_path), use_gpu=False, **given)
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(made.settings()))
    again = Config("SASRec", "mine", config_files=[tmp_path / "given.yaml"])
    assert again.final_config_dict == made.final_config_dict and again.settings() == made.settings()
    assert (made["data_path"], made.settings()["data_path"]) == (str(tmp_path / "mine"), str(tmp_path))


def test_values_of_numpy_and_paths_become_plain_and_text_is_never_evaluated(tmp_path: Path) -> None:
    given = {"seed": np.int64(3), "learning_rate": np.float32(0.5), "topk": (5, 10), "checkpoint_dir": tmp_path}
    given["LABEL_FIELD"] = code = "__import__('os').getcwd()"
    made = config(**given)
    settings = made.settings()
    assert [settings[key] for key in given] == [made[key] for key in given] == [3, 0.5, [5, 10], str(tmp_path), code]
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


# --- the machine


def test_use_gpu_false_or_no_gpu_means_cpu_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert config(use_gpu=not available)["device"] == torch.device("cpu")
    assert config()["single_spec"] is True and os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_gpu_id_counts_the_gpus_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert config()["device"] == torch.device("cuda")
    assert config(gpu_id=1)["device"] == torch.device("cuda", 1)
    assert chosen == [1]
    with pytest.raises(UserError, match=r"gpu_id must be one of 0, 1.*'2'"):
        config(gpu_id="2")


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_item_list_length": 9}, ["'max_item_list_length'", "'MAX_ITEM_LIST_LENGTH'"]),
        ({"qqqq": 1}, ["unknown setting 'qqqq'"]),
        ({"MODEL_TYPE": 1}, ["unknown setting 'MODEL_TYPE'"]),
        ({"epochs": None}, ["epochs", "a whole number", "null"]),
        ({"valid_metric": "NDCG@20"}, ["valid_metric", "Hit@10, NDCG@10, MRR@10", "'NDCG@20'"]),
        ({"valid_metric": "NDCG@10", "topk": [5]}, ["valid_metric", "NDCG@5", "'NDCG@10'"]),
        ({"seed": torch.nn.ReLU()}, ["seed", "a plain value", "ReLU"]),
        ({"train_neg_sample_args": {"sample_num": 1}}, ["train_neg_sample_args", "null", "loss_type CE"]),
        ({"world_size": 2}, ["world_size", "torchrun"]),
        ({"ITEM_ID_FIELD": "user_id"}, ["USER_ID_FIELD", "ITEM_ID_FIELD", "'user_id'"]),
        ({"model": "SASRec", "n_heads": 3}, ["n_heads", "hidden_size, 64", "got 3"]),
        ({"model": "SIGMA", "loss_type": "MSE"}, ["loss_type", "CE, BPR, BCE", "'MSE'"]),
        *(({"dataset": name}, ["dataset", "directory", "100 bytes"]) for name in ("", "a\nb", "d" * 5000)),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("interval", [[5, 40], "[5,40]"])
def test_a_closed_interval_may_be_written_as_the_list_that_it_is_in_yaml(interval: Any) -> None:
    made = config(user_inter_num_interval=interval)
    assert made["user_inter_num_interval"] == made.settings()["user_inter_num_interval"] == "[5,40]"


# --- a model of the user's own


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`own_model(yaml)` -> the name of a class in a module that has `yaml` beside it as its defaults."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from recbole_sigma.model.mamba4rec import Mamba4Rec\nclass Mine(Mamba4Rec): ..."
    (tmp_path / "own_models.py").write_text(code)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)

    def write(text: str) -> str:
        (tmp_path / "Mine.yaml").write_text(text)
        return "own_models:Mine"

    return write


def test_a_users_model_has_its_defaults_beside_its_module(own_model: Callable[[str], str]) -> None:
    made = config(own_model("window: 3\nd_state: 8\n"), window=4)
    assert (made["window"], made["d_state"], made["d_conv"]) == (4, 8, 4), "d_conv is Mamba4Rec's"
    assert made.settings()["model"] == "own_models:Mine"
    with pytest.raises(UserError, match=r"'windw'.*'window'"):
        config(own_model("window: 3\n"), windw=4)
    with pytest.raises(UserError, match=r"window .* whole number, got 'wide'"):
        config(own_model("window: 3\n"), window="wide")


def test_the_defaults_of_a_users_model_are_checked(own_model: Callable[[str], str]) -> None:
    for text, words in [
        ("a: 1\nlearning_rate: fast\n", r"Mine.yaml:2: learning_rate .* 'fast'"),
        ("d_state: 0\n", r"Mine.yaml:1: d_state .* 0"),
        ("field_separator: ','\n", r"Mine.yaml:1: field_separator"),
        ("loss_type: MSE\n", r"Mine.yaml:1: loss_type .* CE, BPR, BCE"),
    ]:
        with pytest.raises(UserError, match=words):
            config(own_model(text))
    assert config(own_model("transform: mask_itemseq\n"))["transform"] == "mask_itemseq"


# --- data sets


def test_an_unknown_data_set_is_one_line_with_its_path_and_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "amazon-beauty").mkdir()
    with pytest.raises(UserError) as caught:
        config(dataset="amazon-beaty", data_path=str(tmp_path))
    named = ("'amazon-beaty'", repr(str(tmp_path / "amazon-beaty")), "'amazon-beauty'")
    assert all(each in str(caught.value) for each in named)
    with pytest.raises(UserError, match=r"did you mean 'ml-100k'\?$"):
        config(dataset="ml100k")
    with pytest.raises(UserError, match=r"--data_path"):
        config(dataset="zzz", data_path=str(tmp_path / "none"))


def test_a_data_set_is_a_directory_in_data_path_and_ml_100k_else_recboles_copy(tmp_path: Path) -> None:
    made = Config("GRU4Rec", "gone", settings={"data_path": str(tmp_path)}, need_data=False)
    assert made["data_path"] == str(tmp_path / "gone"), "of a checkpoint without its data"
    assert Path(config(data_path=str(tmp_path))["data_path"], "ml-100k.inter").is_file()
    (tmp_path / "ml-100k").mkdir()
    assert config(data_path=str(tmp_path))["data_path"] == str(tmp_path / "ml-100k")
