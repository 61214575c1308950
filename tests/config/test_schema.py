"""schema.yaml: every setting has a line, its default is allowed, and what is refused is named in one line."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import check, identity, may_change, role
from recbole_sigma.config.values import Given, properties_path, read_config_file
from recbole_sigma.errors import UserError
from recbole_sigma.registry import find_model, model_names

SCHEMA: dict[str, dict[str, Any]] = yaml.safe_load((properties_path() / "schema.yaml").read_text(encoding="utf-8"))
OURS = {"role", "may_change", "hint", "unsupported", "choices"}  # keywords that JSON Schema does not have
KNOWN = {*Draft202012Validator.META_SCHEMA["properties"], *Draft202012Validator.VALIDATORS} | OURS
ROLES = {"model", "training", "data", "protocol", "machine", "location"}
FILES = [properties_path() / "overall.yaml", *sorted((properties_path() / "model").glob("*.yaml"))]

MACHINE = {
    "threads",
    "nproc",
    "use_gpu",
    "gpu_id",
    "show_progress",
    "state",
    "eval_batch_size",
    "download",
    "memory_map_above",
}
LOCATION = {"data_path", "checkpoint_dir", "init_from", "distill_from", "members"}
TORCHRUN = {"world_size", "offset", "ip", "port"}


def refusal(name: str, value: Any, default: Any = None, choices: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        check(name, Given(value, "a.yaml:3"), default, choices or {})
    message = str(caught.value)
    assert message.startswith("a.yaml:3: ") and "\n" not in message and name in message
    return message.removeprefix("a.yaml:3: ")


def test_every_line_is_a_json_schema_with_a_role() -> None:
    for name, line in SCHEMA.items():
        Draft202012Validator.check_schema(line)
        assert line["role"] in ROLES and {"unsupported", "type", "enum"} & {*line}, name
        assert {*line} <= KNOWN, f"{name}: a misspelt keyword checks nothing"
    assert {name for file in FILES for name in read_config_file(file)} <= {*SCHEMA}


def test_choices_are_those_of_the_model_classes() -> None:
    classes = [find_model(name) for name in model_names()]
    of_classes = {name: {*each} for cls in classes for name, each in getattr(cls, "choices", {}).items()}
    early = {name: {*line["choices"]} for name, line in SCHEMA.items() if "choices" in line}
    assert of_classes == early


@pytest.mark.parametrize("model", model_names())
def test_every_default_is_allowed(model: str) -> None:
    config = Config(model, "", need_data=False)
    for name, value in config.settings().items():
        check(name, Given(value), config.internal_config_dict.get(name), getattr(find_model(model), "choices", {}))


def test_roles_say_what_determines_a_run_and_what_may_change_or_be_tuned() -> None:
    assert {name for name in SCHEMA if role(name) == "machine"} == MACHINE | TORCHRUN
    assert {name for name in SCHEMA if role(name) == "location" and name[0] != "-"} == LOCATION
    protocol = {"model", "eval_args", "metrics", "topk", "valid_metric", "time_order", "repeatable"}
    data = {"dataset", "load_col", "val_interval", "user_inter_num_interval", "rm_dup_inter"}
    data |= {"USER_ID_FIELD", "TIME_FIELD"}
    assert ({*map(role, protocol)}, {*map(role, data)}) == ({"protocol"}, {"data"}), "and so they cannot be tuned"
    assert role("of_a_model_of_the_users_own") == "model"
    changeable = {name for name in SCHEMA if may_change(name) and name[0] != "-"} - TORCHRUN
    decide = {"nproc", "init_from", "distill_from", "members"}
    assert changeable == (MACHINE | LOCATION | {"epochs", "stopping_step"}) - decide
    settings = Config("SIGMA", "ml-100k").settings()
    assert identity(settings) == {name: settings[name] for name in settings if name not in MACHINE | LOCATION}


NAMES = sorted({*SCHEMA, *Config("SIGMA", "ml-100k").settings(), "of_the_users_own"})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@given(st.sampled_from(NAMES), VALUES, st.sampled_from([None, 1, 0.5, "a", [1], [], {}, True]))
def test_any_value_is_allowed_or_refused_in_one_line_that_names_it(name: str, value: Any, default: Any) -> None:
    try:
        check(name, Given(value), default, {})
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)


def test_what_is_no_number() -> None:
    for wrong in (True, 1.0, 10**18, "1", None):
        assert "a whole number, at least 1" in refusal("epochs", wrong)
        assert "a whole number" in refusal("new", wrong, default=1)
    for wrong in (True, float("nan"), float("inf"), -(10**18), "1"):
        assert "a number, greater than 0" in refusal("learning_rate", wrong)
        assert "a number" in refusal("new", wrong, default=0.5)
    assert "18 digits" in refusal("r", 10**18) and "finite" in refusal("new", float("nan"))
    check("learning_rate", Given(1), 0.001, {})
    check("new", Given(10**18 - 1), 0.5, {})


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("seed", 2**32, "at least 0 and at most 4294967295"),
        ("threads", "two", "a whole number or null"),
        ("dropout_prob", 1.0, "at least 0 and less than 1"),
        ("topk", [10, 0], "a whole number or a list"),
        ("topk", [], "a list"),
        ("metrics", ["Hit", "AUC"], "Hit, NDCG, MRR"),
        ("time_order", "exactly", "exact, recbole"),
        ("rm_dup_inter", "middle", "first, last"),
        ("repeatable", False, "true"),
        ("use_gpu", 1, "true or false"),
        ("gpu_id", 0.5, "the number of a GPU"),
        ("checkpoint_dir", "a\0b", "the path of a directory"),
        ("data_path", "", "the path of a directory"),
        ("USER_ID_FIELD", "a:b", "the name of a column"),
        ("LABEL_FIELD", "a\nb", "the name of a column"),
        ("numerical_features", [""], "[rating]"),
        ("load_col", {"net": "*"}, "inter, user, item"),
        ("unused_col", {"inter": "*"}, "inter, user, item"),
        ("seq_len", {"class": 0}, "{class: 3}"),
        ("threshold", {"a": 1, "b": 2}, "{rating: 3}"),
        ("val_interval", {"rating": "[2,1]"}, "{rating: '[3,inf)'"),
        ("val_interval", {"user_id": [1]}, "['u1', 'u2']"),
        ("user_inter_num_interval", "(a,b)", "'[5,inf)'"),
        ("item_inter_num_interval", "[1,nan]", "'[5,inf)'"),
        ("item_inter_num_interval", "[1,2];", "'[5,inf)'"),
        ("clip_grad_norm", {5: 1}, "max_norm"),
        ("clip_grad_norm", {"norm_type": 2}, "{max_norm: 1}"),
        ("train_neg_sample_args", {"dynamic": True}, "dynamic sampling is not supported"),
        ("train_neg_sample_args", {"distribution": "normal"}, "uniform or popularity"),
        ("eval_args", {"mode": "uni"}, "{mode: full}"),
        ("eval_args", {"ordr": "TO"}, "'order'"),
        ("encoding", "latin-1", "UTF-8"),
    ],
)
def test_a_wrong_value_is_named_beside_what_would_be_right(name: str, value: Any, right: str) -> None:
    message = refusal(name, value)
    wrong = value[-1] if isinstance(value, list) and value else value
    assert right in message
    assert "unknown" in message or message.endswith(f", got {wrong!r}".replace("False", "false"))


@pytest.mark.parametrize(
    ("name", "value", "default", "instead"),
    [
        ("world_size", 2, None, "torchrun --nnodes"),
        ("field_separator", ",", "\t", "tab-separated UTF-8"),
        ("LIST_SUFFIX", "_seq", "_list", "'_list'"),
        ("NEG_PREFIX", None, "neg_", "'neg_'"),
        ("preload_weight", {"a": "b"}, None, "leave it out"),
        ("save_dataset", True, False, "pickles"),
        ("transform", "crop_itemseq", "mask_itemseq", "'mask_itemseq'"),
    ],
)
def test_an_unsupported_setting_says_what_to_do_instead(name: str, value: Any, default: Any, instead: str) -> None:
    message = refusal(name, value, default)
    assert message.startswith(f"{name}: {value!r}".replace("True", "true").replace("None", "null"))
    assert instead in message
    check(name, Given(default), default, {})


def test_what_recbole_takes_is_allowed() -> None:
    for name, value in {
        "topk": 5, "metrics": "ndcg", "gpu_id": [0, "1"], "threads": None, "encoding": "utf-8",
        "load_col": {"inter": "*", "user": ["age"]}, "item_inter_num_interval": "[1,3];(5,inf)",
        "val_interval": {"rating": "[3,inf)", "user_id": ["u1"]}, "eval_args": {"mode": {"valid": "full"}},
        "train_neg_sample_args": {"distribution": "popularity", "alpha": 0.5},
        "clip_grad_norm": {"max_norm": 1, "norm_type": 2.0},
    }.items():  # fmt: skip
        check(name, Given(value), None, {})


def test_a_model_names_the_values_of_its_settings_and_otherwise_the_default_says_the_type() -> None:
    check("loss_type", Given("BCE"), "CE", {"loss_type": ("CE", "BCE")})
    assert "one of CE, BCE" in refusal("loss_type", "BPR", "CE", {"loss_type": ("CE", "BCE")})
    check("new", Given([1, 2]), [3], {})
    check("new", Given(2), [3], {})  # RecBole takes one value for a list of one
    assert "a whole number or a list" in refusal("new", ["a"], default=[3])
    assert "true or false" in refusal("new", "yes", default=True)
    assert "a mapping" in refusal("new", 3, default={"a": 1})
    assert len(refusal("new", "x" * 500, default=1)) < 200
