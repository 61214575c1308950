"""Bad input: a line that says what is wrong, or a right result. Generated cases, and each mistake that was once let in.

`tests/fuzz.py` runs the same strategies for long.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, note, settings

from recbole_sigma import cli
from tests.fuzz import KINDS, Case, judge, limited_memory, warm_up
from tests.helpers.fuzz_cases import MODELS, SMALL, tiny_inter

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = [f"u{n % 3}\ti{n % 7}\t{n}" for n in range(20)]
few = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def _limits() -> Iterator[None]:
    warm_up()
    with limited_memory():
        yield


def check(case: Case) -> None:
    note(f"python tests/fuzz.py --replay {case.packed()}")
    outcome = judge(case, limit=60)  # on a machine that is busy with other tests
    assert not outcome.fault, outcome.fault


@few
@given(KINDS["files"])
def test_any_file_is_read_right_or_refused_in_one_line(case: Case) -> None:
    check(case)


@few
@given(KINDS["settings"])
def test_any_setting_is_obeyed_or_refused_in_one_line(case: Case) -> None:
    check(case)


@few
@given(KINDS["commands"])
def test_any_command_line_is_obeyed_or_refused_in_one_line(case: Case) -> None:
    check(case)


@few
@given(KINDS["folders"])
def test_any_folder_is_resumed_right_or_refused_in_one_line(case: Case) -> None:
    check(case)


def test_a_case_can_be_replayed() -> None:
    case = Case("files", ["train"], {"a": "\xff\0"}, links={"b": "a"}, right=True)
    assert Case.unpacked(case.packed()) == case


# --- what was found


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """`refusal(model, setting=value, ..., files={name: text})` -> the line of error of a `train` on the tiny data."""

    def run(model: str = "Mamba4Rec", /, files: dict[str, str] | None = None, **given: Any) -> str:
        monkeypatch.chdir(tmp_path)
        for name, text in {"tiny.inter": tiny_inter(), **(files or {})}.items():
            path = tmp_path / "dataset" / "tiny" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        own = MODELS.get(given.get("model", model), {})
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**SMALL, **own, "model": model, **given}))
        assert cli.main(["train", "--config_files=base.yaml"]) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[-1].removeprefix("recbole-sigma: error: ").removeprefix("base.yaml").lstrip("0123456789: ")

    return run


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rm_dup_inter": "middle"}, "rm_dup_inter must be one of first, last, got 'middle'"),
        ({"threshold": [3]}, "threshold must be a mapping of one column to a number, such as {rating: 3}, got [3]"),
        (
            {"threshold": {"rating": 3}},
            "threshold: no column 'rating' is loaded; the columns are user_id, item_id, tim",
        ),
        ({"threshold": {"timestamp": 3}}, "threshold: 'timestamp' must be a column of the .inter file other than its"),
        ({"val_interval": {"timestamp": "[2,1]"}}, "val_interval must be a mapping such as {rating: '[3,inf)', user_"),
        ({"val_interval": {"item_id": "[1,2]"}}, "val_interval: column 'item_id' is of type token; it must be float"),
        ({"val_interval": {"timestamp": ["1"]}}, "val_interval: column 'timestamp' is of type float; it must be token"),
        ({"user_inter_num_interval": "(a,b)"}, "user_inter_num_interval must be an interval such as '[5,inf)', or sev"),
        ({"normalize_field": ["timestmp"]}, "normalize_field: no column 'timestmp' is loaded; did you mean 'timestam"),
        ({"normalize_field": ["timestamp"], "normalize_all": True}, "normalize_field, normalize_all: only one of them"),
        ({"alias_of_item_id": ["class"]}, "alias_of_item_id: no column 'class' is loaded; the columns are user_id"),
        ({"alias_of_user_id": ["item_id"]}, "alias_of_user_id: 'item_id' is an id itself; name other columns that"),
        ({"unused_col": {"user": ["age"]}}, "unused_col: no .user file is loaded; leave 'user' out"),
        ({"unused_col": {"inter": ["item_id"]}}, "unused_col: 'item_id' is needed; leave it out"),
        ({"load_col": ["item_id"]}, "load_col must be a mapping such as {inter: [rating], item: [class]}, with the"),
        ({"load_col": {"inter": "*"}, "unload_col": {"inter": ["item_id"]}}, "load_col, unload_col: column 'item_id' "),
        ({"discretization": {"x": {"method": "ED"}}}, "discretization: buckets of numbers are not supported; leave it"),
        ({"preload_weight": {"a": "b"}}, "preload_weight: weights from a file are not supported; leave it out"),
        ({"additional_feat_suffix": ["x"]}, "additional_feat_suffix: files other than .inter, .user and .item are not"),
        ({"clip_grad_norm": {5: 1}}, "clip_grad_norm must be a mapping such as {max_norm: 1}, of positive numbers; n"),
        ({"local_rank": 0}, "unknown setting 'local_rank'"),
        ({"loss_type": "BPR", "train_neg_sample_args": {"sample_num": 0}}, "train_neg_sample_args must be a mapping s"),
        ({"loss_type": "BPR", "train_neg_sample_args": {"dynamic": True}}, "train_neg_sample_args must be a mapping s"),
        ({"transform": "crop_itemseq"}, "transform must be left out with this model, got 'crop_itemseq'"),
        ({"model": "BERT4Rec", "transform": "crop_itemseq"}, "transform must be mask_itemseq with this model, got"),
        ({"learner": "sparse_adam"}, "learner must be one of adam, adamw, sgd, adagrad, rmsprop, got 'sparse_adam'"),
        ({"numerical_features": ["timestamp"]}, "numerical_features: 'timestamp' is the time, which orders histories"),
        ({"NEG_PREFIX": ""}, "NEG_PREFIX must be the name of a column: text without ':', got ''"),
        ({"LIST_SUFFIX": None}, "LIST_SUFFIX must be text, got nothing"),
        ({"MAX_ITEM_LIST_LENGTH": None}, "MAX_ITEM_LIST_LENGTH must be a whole number, got nothing"),
        ({"MAX_ITEM_LIST_LENGTH": 10**12}, "MAX_ITEM_LIST_LENGTH must be at most 2147483647, got 1000000000000"),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id_list"}, "ITEM_LIST_LENGTH_FIELD and LIST_SUFFIX both make a column 'item"),
        ({"TIME_FIELD": "item_id"}, "ITEM_ID_FIELD and TIME_FIELD both make a column 'item_id'; give them different"),
        ({"num_layers": 10**6}, "num_layers must be at most 1024, got 1000000"),
        ({"threads": 10**6}, "threads must be at most 1024, got 1000000"),
        ({"worker": 10**6}, "worker must be at most 1024, got 1000000"),
        ({"checkpoint_dir": "a\0b"}, r"checkpoint_dir must be the path of a folder, got 'a\x00b'"),
        ({"data_path": ""}, "data_path must be the path of a folder, got ''"),
        ({"field_separator": "\n"}, r"field_separator must be one character that no name or number holds, such as a t"),
        ({"encoding": "utf-16"}, "encoding: 'utf-16' is unknown or no extension of ASCII; utf-8 is usual"),
        ({"encoding": "hex"}, "encoding: 'hex' is unknown or no extension of ASCII; utf-8 is usual"),
        ({"dataset": "../tiny"}, "dataset must be the name of a folder in data_path, of at most 100 bytes, got '../ti"),
        ({"dataset": "d" * 5000}, "dataset must be the name of a folder in data_path, of at most 100 bytes, got 'ddd"),
        ({"dataset": "a\nb"}, r"dataset must be the name of a folder in data_path, of at most 100 bytes, got 'a\nb'"),
        ({"model": "nn"}, "unknown model 'nn'"),
        ({"model": "__class__"}, "unknown model '__class__'"),
    ],
)
def test_a_wrong_setting_is_refused_before_it_does_harm(
    refusal: Callable[..., str], given: dict[str, Any], line: str
) -> None:
    assert refusal(**given).startswith(line)


def table(*rows: str) -> str:
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"tiny.inter": table(f"{HEADER}\tx:float_seq", *(f"{row}\t1 two" for row in ROWS))},
            "dataset/tiny/tiny.inter:2: x:float_seq holds 'two'; numbers are expected",
        ),
        (
            {"tiny.inter": table(f"{HEADER}\titem_id_list:token", *(f"{row}\ta" for row in ROWS))},
            "column 'item_id_list' of the .inter file has the name of one that is made for batches (setting LIST_SUFF",
        ),
        (
            {"tiny.inter": table(f"{HEADER}\tneg_item_id:token", *(f"{row}\ta" for row in ROWS))},
            "column 'neg_item_id' of the .inter file has the name of one that is made for batches (setting NEG_PREFIX)",
        ),
        (
            {"tiny.item": table("name:token", "a")},
            "dataset/tiny/tiny.item:1: no column 'item_id' (setting ITEM_ID_FIELD); the columns are name",
        ),
        (
            {"tiny.item": table("item_id:token\ttimestamp:float", "i1\t1")},
            "column 'timestamp' stands in the .inter and in the .item file; rename one, or name the columns to be read",
        ),
        ({"tiny.user": table("user_id:token")}, "dataset/tiny/tiny.user:2: no data below the header; one line for ea"),
        (
            {"tiny.inter": table(HEADER, *ROWS, "u1\ti1\t١٢")},
            "dataset/tiny/tiny.inter:22: timestamp:float is '١٢'; a nu",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(refusal: Callable[..., str], files: dict[str, str], line: str) -> None:
    assert refusal(files=files).startswith(line)


def test_a_line_without_an_end_is_not_read_to_its_end(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_sigma.data.atomic._BLOCK", 100)
    said = refusal(files={"tiny.inter": table(HEADER, *ROWS, "z" * 300)})
    assert said == "dataset/tiny/tiny.inter: a line of more than 100 bytes; a plain text table is expected"


def test_masking_needs_an_item_outside_the_history(refusal: Callable[..., str]) -> None:
    rows = [f"u{n % 3}\ti{n // 3 % 4}\t{n}" for n in range(24)]
    said = refusal("BERT4Rec", files={"tiny.inter": table(HEADER, *rows)})
    assert said.startswith("transform: mask_itemseq needs an item outside each history, and a history of user u0 has")


def test_a_constant_list_of_numbers_can_be_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{row}\t{'3 3' if number % 2 else ''}" for number, row in enumerate(ROWS)]
    text = table(f"{HEADER}\tx:float_seq", *rows)
    monkeypatch.chdir(tmp_path)
    arguments = {**SMALL, **MODELS["Mamba4Rec"], "model": "Mamba4Rec", "normalize_all": True}
    (tmp_path / "dataset" / "tiny").mkdir(parents=True)
    (tmp_path / "dataset" / "tiny" / "tiny.inter").write_text(text)
    assert cli.main(["train", *(f"--{key}={json.dumps(value)}" for key, value in arguments.items())]) == 0


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["train", "--config_files=/dev/zero"], "/dev/zero: settings in more than 65536 bytes; is it a YAML file?"),
        (["train", "--a\nb"], r"--a\nb has no value: write --a\nb=value"),
        (["train", "--wandb_project=\udcff"], r"cannot read '--wandb_project=\udcff': it is not text in UTF-8"),
        (["train", r'--wandb_project="\ud800"'], r"--wandb_project: '\ud800' holds half a character (put text in quo"),
        (["train", "--" + "k" * 10**6 + "=1"], "unknown setting 'kkkkk"),
        (["models", "--items=1000000000000000000"], "items must be at most 1,000,000,000,000, got 1000000000000000000"),
        (["models", "S" * 10**6], "unknown model 'SSSS"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(args: list[str], line: str, capsys: Any) -> None:
    assert cli.main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"recbole-sigma: error: {line}") and len(said) < 1000 and said.count("\n") == 1
