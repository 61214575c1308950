"""Mistakes that strangers make: each is one line that says what would be right, or simply works."""

import io
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import cli
from recbole_sigma.commands import options
from recbole_sigma.config.early import check_early, data_folder
from recbole_sigma.config.values import Given, parse_overrides, read_config_file
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.spec import read_experiment
from recbole_sigma.runs import files
from tests.helpers.runs import ON_CPU

Refused = Callable[..., str]


@pytest.mark.parametrize("text", ["2024", "NO", "1e3", "0.10", "007", "null", "~x", "a: b", "a #b", "[a", "2024-01-01"])
def test_a_name_or_a_path_stays_as_it_is_typed(text: str, tmp_path: Path) -> None:
    assert parse_overrides([f"--dataset={text}", f"--checkpoint_dir={text}"]) == {
        "dataset": text,
        "checkpoint_dir": text,
    }
    if text not in ("a: b", "a #b", "[a"):  # there a file needs quotes
        file = tmp_path / "a b.yaml"
        file.write_text(f"dataset: {text}\nload_col: {{inter: [{text}]}}\nseed: 3\n")
        read = {name: given.value for name, given in read_config_file(file).items()}
        assert read == {"dataset": text, "load_col": {"inter": [text]}, "seed": 3}
        file.write_text(f"datasets: [{text}]\narms: {{{text}: {{model: SIGMA, data_path: {text}}}}}\n")
        with pytest.raises(UserError, match="unknown data set"):  # and not: must be text
            read_experiment(str(file))


def test_null_stays_null_where_a_setting_may_be_null() -> None:
    assert parse_overrides(["--TIME_FIELD=null", "--ITEM_ID_FIELD=None"]) == {"TIME_FIELD": None, "ITEM_ID_FIELD": None}


@pytest.mark.parametrize(
    ("text", "entries"),
    [("A,B", ["A", "B"]), ("[A, B]", ["A", "B"]), ("2024, NO", ["2024", "NO"]), ("[2024, NO]", ["2024", "NO"])],
)
def test_a_list_of_names_has_commas(text: str, entries: list[str]) -> None:
    assert options.names(parse_overrides([f"--dataset={text}"]), "dataset") == entries


@pytest.mark.parametrize("name", ["a b.yaml", "a,b.yaml", "ä.yaml", "[a].yaml", "~/c.yaml"])
def test_a_config_file_is_found_by_its_path_as_it_is(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name.removeprefix("~/")).write_text("epochs: 3\n")
    (found,) = options.files(parse_overrides([f"--config_files={name}"]))
    assert read_config_file(found)["epochs"].value == 3


def test_one_option_has_one_name_and_its_old_names(refused: Refused) -> None:
    for old, new in options.ALIASES.items():
        _, settings = options.parse(options.command_parser("a\n\nb"), [f"--{old}", "x,y"])
        assert settings == {new: "x,y"}
    refused("compare", "--dataset=doesnotexist", "--models=SIGMA", names=["'doesnotexist'", "data_path"])
    refused("compare", "--dataset=a", "--datasets=b", "--model=SIGMA", names=["--dataset", "twice"])
    refused("train", "--model=SIGMA,SASRec", names=["--model", "compare"])
    refused("tune", "--engine=rey", names=["--engine", "hyperopt", "'rey'"])


@pytest.mark.parametrize(
    ("model", "setting", "named", "misleading"),
    [
        ("SIGMA", "lr", "'learning_rate'", "'r'"),
        ("SIGMA", "batch_size", "'train_batch_size'", "eval"),
        ("SIGMA", "n_heads", "BERT4Rec", "threads"),
        ("SIGMA", "tau", "FEARec", "did you mean"),
        ("SIGMA", "foo", "SIGMA", "food"),
        ("SIGMA", "seeds", "'seed'", "experiment"),
        ("SIGMA", "nonsense", "SIGMA", "did you mean"),
        ("Mamba4Rec", "fe_gru", "SIGMA", "did you mean"),
    ],
)
def test_hints_lead_to_the_setting_that_is_meant(model: str, setting: str, named: str, misleading: str) -> None:
    with pytest.raises(UserError) as caught:
        check_early(model, "ml-100k", {setting: Given(1)})
    assert named in str(caught.value) and misleading not in str(caught.value)


def test_hints_lead_to_no_other_data_set_and_no_other_kind_of_model(refused: Refused, tmp_path: Path) -> None:
    for name in ("ml-10m", "ml-100k", "beauty"):
        (tmp_path / name).mkdir()
    for wrong, hint in {"ml-2m": "data_path", "beuaty": "'beauty'"}.items():
        with pytest.raises(UserError, match=hint) as caught:
            data_folder(wrong, tmp_path)
        assert "ml-10" not in str(caught.value).partition("'; ")[2]
    refused("train", "--model=BPR", names=["'BPR'", "general"])
    refused("train", "--model=KGAT", names=["'KGAT'", "knowledge-aware"])


@pytest.mark.parametrize(
    "setting",
    ["log_wandb=True", "wandb_project=x", "metric_decimal_place=2", "loss_decimal_place=2", "kg_reverse_r=True",
     "ENTITY_ID_FIELD=e", "require_pow=True", "world_size=2", "valid_metric_bigger=False", "form=x", "mixing=x"],
)  # fmt: skip
def test_what_has_no_effect_is_refused_before_anything_is_loaded(setting: str, refused: Refused) -> None:
    refused("train", f"--{setting}", names=[setting.partition("=")[0]])


# --- what a person sees


def test_characters_that_the_terminal_does_not_have_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli, "_dispatch", lambda argv: print("─ é •"))
    assert cli.main(["report"]) == 0
    assert out.buffer.getvalue() == b"? ? ?\n"  # type: ignore[attr-defined]


def test_the_hint_to_resume_can_be_typed() -> None:
    assert Interrupted("my runs/a").how == "recbole-sigma train --resume='my runs/a'"


def test_a_file_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.unlink()
        path.touch(mode=0o600)  # as safetensors does

    files.write_file(tmp_path / "private", write)
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "other")]
    assert modes[0] == modes[1] != 0o600


def test_a_system_without_fcntl_works_without_locks_and_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; from recbole_sigma.runs.files import locked\n"
        "with locked(sys.argv[1], wait=False) as held: print(held)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n" and "no locks on this system" in done.stderr


def test_a_log_that_is_no_terminal_has_a_line_per_epoch_and_a_sentence_first(tmp_path: Path, capfd: Any) -> None:
    settings = {**ON_CPU, "show_progress": True, "epochs": 1, "MAX_ITEM_LIST_LENGTH": 4, "checkpoint_dir": tmp_path}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    assert cli.main(["train", "--model=GRU4Rec", "--user_inter_num_interval=[0,22]", *arguments]) == 0
    shown = capfd.readouterr()
    assert "it/s" not in shown.err + shown.out and "{" not in shown.err
    assert max(map(len, shown.out.splitlines()[:-1])) <= 80
