"""Settings as text, in files and on the command line: read as plain values, never run."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_sigma.config.config import Config
from recbole_sigma.config.values import dump_settings, parse_overrides, read_config_files, schemas
from recbole_sigma.errors import UserError

PLAIN = (type(None), bool, int, float, str, list, dict)
READ = [
    ("0.001", 0.001), ("1e-3", 0.001), ("-1.5E+2", -150.0), (".5", 0.5), ("5", 5), ("-3", -3), ("+3", 3), ("0", 0),
    ("true", True), ("False", False), ("~", None), ("None", None), ("", None), ("NDCG@10", "NDCG@10"),
    ("[10, 20]", [10, 20]), ("['a','b']", ["a", "b"]), ("{'a': 'uniform', 'b': 1}", {"a": "uniform", "b": 1}),
    ("{<<: 1}", {"<<": 1}), ("'5'", "5"),
]  # fmt: skip
TEXT = ["[0,inf)", "a=b", "010", "1_000", "10:20", "2024-01-01", "1e", "=", "9" * 5000, "__import__('os').getcwd()"]


def is_plain(value: Any) -> bool:
    """Whether nothing but YAML's plain kinds is in it."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return type(value) in PLAIN and all(map(is_plain, inside))


@pytest.mark.parametrize(("text", "value"), [*READ, *((text, text) for text in TEXT)])
def test_a_value_is_read_as_its_reader_would(text: str, value: Any) -> None:
    (parsed,) = parse_overrides([f"--key={text}"]).values()
    assert parsed == value and type(parsed) is type(value)


@given(st.text())
def test_any_text_gives_a_plain_value_or_a_line(text: str) -> None:
    try:
        parsed = parse_overrides([f"--key={text}"])
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert list(parsed) == ["key"] and is_plain(parsed["key"])


SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | st.text()
KEYS = st.text().filter(lambda name: name not in schemas())  # the values of settings are read by their schema
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(VALUES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("back") / "value.yaml"
    for dump in (yaml.safe_dump, dump_settings):
        path.write_text(dump({"key": value}), encoding="utf-8")
        assert read_config_files([path])["key"].value == value


@pytest.mark.parametrize("text", ["1e3", "0E0", "010", "12:30", "2024-01-01", "yes", "~", "=", "<<", ".5", "a\n", ""])
def test_text_that_looks_like_something_else_is_read_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    settings = {"wandb_project": text, "topk": [10**18 - 1, 1e-300], "val_interval": {text: [text]}}
    path.write_text(dump_settings(settings))
    assert {key: each.value for key, each in read_config_files([path]).items()} == settings


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["learning_rate=1"], "'learning_rate=1'.*--name=value"),
        (["-k=1"], "'-k=1'.*--name=value"),
        (["--"], "'--'.*--name=value"),
        (["--=1"], "'--=1'.*--name=value"),
        (["--epochs", "5"], "--epochs=value"),
        (["--epochs=1", "--epochs=1", "--epochs=2"], "--epochs .*twice"),
        (["--x={a: 1, a: 2}"], "--x: 'a' .*twice"),
        (["--x=" + "[" * 5000], "--x: .*too deep"),
        (["--x=\ud800"], "UTF-8"),
        ([r'--x="\ud800"'], "--x: .*character"),
        *(([f"--x={text}"], "--x: .*plain values") for text in ("!x 1", "&a [*a]", "*a", "!!python/name:os.system")),
    ],
)
def test_a_malformed_argument_is_one_line(args: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_overrides(args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("epochs: [1, 2\nseed: 1\n", 2, "expected ',' or ']'"),
        ("epochs: 1\nlearnin_rate: 1\n", 2, "'learnin_rate'.*'learning_rate'"),
        ("epochs: 1\n\nseed: x\n", 3, "seed must be a whole number.*'x'"),
        ("epochs: 1\nepochs: 2\n", 2, "'epochs' is given twice.*line 1"),
        ("a: 1\n'a': 2\n", 2, "'a' is given twice.*line 1"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "plain values"),
        *((text, 1, "'name: value'") for text in ("- 1\n", "just text\n")),
        ("1: 2\n", 1, "'1'"),
        ("? [a]\n: 1\n", 1, "unhashable key"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: '\x07'\n", None, "#x0007"),
        ("[" * 5000, None, "too deep"),
        ("a: " + "x" * 2**18, None, "262144 bytes"),
        ("valid_metric: NDCG@5\n", 1, "valid_metric.*Hit@10"),
        ("eval_args:\n  ordr: TO\n", 1, "'ordr'.*'order'"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        Config("GRU4Rec", "ml-100k", config_files=[path])
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line_and_an_empty_one_sets_nothing(tmp_path: Path) -> None:
    binary, empty = tmp_path / "binary.yaml", tmp_path / "empty.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in [(tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory"), (binary, "UTF-8")]:
        with pytest.raises(UserError, match=words) as caught:
            read_config_files([path])
        assert str(path) in str(caught.value)
    empty.write_text("# nothing yet\n")
    assert read_config_files([empty]) == {}
