"""Settings as text, in files and on the command line: read as plain values, never run."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_sigma.config.config import Config
from recbole_sigma.config.values import dump_settings, parse_overrides, read_config_files
from recbole_sigma.errors import UserError

PLAIN = (type(None), bool, int, float, str, list, dict)


def is_plain(value: Any) -> bool:
    """Whether nothing but YAML's plain kinds is in it."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return type(value) in PLAIN and all(map(is_plain, inside))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.001", 0.001),
        ("1e-3", 0.001),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("5", 5),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("None", None),
        ("", None),
        ("NDCG@10", "NDCG@10"),
        ("[10, 20]", [10, 20]),
        ("['a','b']", ["a", "b"]),
        ("{'distribution': 'uniform', 'sample_num': 1}", {"distribution": "uniform", "sample_num": 1}),
        ("[0,inf)", "[0,inf)"),
        ("a=b", "a=b"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("10:20", "10:20"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("=", "="),
        ("'5'", "5"),
        ("9" * 5000, "9" * 5000),
        ("{<<: 1}", {"<<": 1}),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
    ],
)
def test_a_value_is_read_as_its_reader_would(text: str, value: Any) -> None:
    (parsed,) = parse_overrides([f"--key={text}"]).values()
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_any_text_gives_a_plain_value_or_a_line(text: str) -> None:
    try:
        parsed = parse_overrides([f"--key={text}"])
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert list(parsed) == ["key"]
        assert is_plain(parsed["key"])


@given(
    st.sampled_from(["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!x 1", "&a [*a]", "*a"])
)
def test_tags_and_anchors_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--key: settings are plain values"):
        parse_overrides([f"--key={text}"])


SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(VALUES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("back") / "value.yaml"
    path.write_text(yaml.safe_dump({"key": value}), encoding="utf-8")
    assert read_config_files([path])["key"].value == value


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["learning_rate=1"], "cannot read 'learning_rate=1': a setting is written --name=value"),
        (["-k=1"], "cannot read '-k=1': a setting is written --name=value"),
        (["--"], "cannot read '--': a setting is written --name=value"),
        (["--=1"], "cannot read '--=1': a setting is written --name=value"),
        (["--epochs"], "--epochs has no value: write --epochs=value"),
        (["--epochs", "5"], "--epochs has no value: write --epochs=value"),
        (["--epochs=1", "--epochs=2"], "--epochs is given twice with different values"),
        (["--x=" + "[" * 5000], "--x: nested too deeply"),
    ],
)
def test_a_malformed_argument_is_one_line(args: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides(args)
    assert str(caught.value) == line


def test_the_same_value_may_be_given_twice() -> None:
    assert parse_overrides(["--epochs=1", "--epochs=1"]) == {"epochs": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs: [1, 2\nseed: 1\n", "{path}:2: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("epochs: 1\nlearnin_rate: 1\n", "{path}:2: unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        ("epochs: 1\n\nseed: x\n", "{path}:3: seed must be a whole number, got 'x'"),
        ("epochs: 1\nepochs: 2\n", "{path}:2: 'epochs' is given twice (first in line 1)"),
        ("a: 1\nb: !!python/name:os.system\n", "{path}:2: settings are plain values: no tag '{tag}'"),
        ("a: &x [1]\nb: *x\n", "{path}:1: settings are plain values: no & and *"),
        ("- 1\n", "{path}:1: settings are written 'name: value', one a line"),
        ("just text\n", "{path}:1: settings are written 'name: value', one a line"),
        ("1: 2\n", "{path}:1: unknown setting '1'"),
        ("? [a]\n: 1\n", "{path}:1: while constructing a mapping, found unhashable key"),
        ("a: 1\n---\nb: 2\n", "{path}:2: expected a single document in the stream, but found another document"),
        ("a: '\x07'\n", "{path}: unacceptable character #x0007: special characters are not allowed in"),
        ("valid_metric: NDCG@5\n", "{path}:1: valid_metric must be one that metrics and topk give (Hit@10"),
        ("eval_args:\n  ordr: TO\n", "{path}:1: unknown 'ordr' in eval_args; did you mean 'order'?"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Config("GRU4Rec", "ml-100k", config_files=[path])
    assert str(caught.value).startswith(line.format(path=path, tag="tag:yaml.org,2002:python/name:os.system"))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, line in [
        (tmp_path / "none.yaml", f"config file '{tmp_path}/none.yaml' does not exist"),
        (tmp_path, f"config file '{tmp_path}' cannot be read: Is a directory"),
        (binary, f"{binary}: not a text file in UTF-8"),
    ]:
        with pytest.raises(UserError) as caught:
            read_config_files([path])
        assert str(caught.value) == line


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read_config_files([path]) == {}


@pytest.mark.parametrize(
    "text", ["1e3", "0E0", "010", "12:30", "2024-01-01", "yes", "~", "=", "<<", "-", ".5", "a\n", ""]
)
def test_settings_that_are_written_are_read_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    given = {"wandb_project": text, "topk": [10**18 - 1, 1e-300], "val_interval": {text: [text]}}
    path.write_text(dump_settings(given))
    assert {key: each.value for key, each in read_config_files([path]).items()} == given


@pytest.mark.parametrize("given", [[5, 40], "[5,40]"])
def test_a_closed_interval_may_be_written_as_the_list_that_it_is_in_yaml(given: Any):
    config = Config("GRU4Rec", "ml-100k", settings={"user_inter_num_interval": given})
    assert config["user_inter_num_interval"] == config.settings()["user_inter_num_interval"] == "[5,40]"
