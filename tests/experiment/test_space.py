"""Parameter files: they mean what RecBole makes of them, and nothing in them is executed."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyperopt.pyll.base import as_apply, rec_eval
from hyperopt.pyll.stochastic import sample
from hypothesis import given
from hypothesis import strategies as st
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_sigma.config.config import Config
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.space import Parameter, Space, check_space, parse_space, read_space

ROOT = Path(__file__).parents[2]

names = st.from_regex(r"[A-Za-z_][A-Za-z_0-9@]{0,20}", fullmatch=True)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)  # fmt: skip
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
bounds = st.tuples(*[st.floats(-600, 600, allow_nan=False)] * 2).filter(lambda pair: pair[0] < pair[1])


def spaces(values: Any = nested) -> Any:
    steps = st.tuples(bounds, st.floats(0.01, 10)).map(lambda pair: (*pair[0], pair[1]))
    choices = st.lists(values, min_size=1, max_size=5, unique_by=json.dumps).map(tuple)
    kinds = {"choice": choices, "uniform": bounds, "loguniform": bounds, "quniform": steps}
    parameters = st.one_of(*(st.builds(Parameter, names, st.just(kind), kinds[kind]) for kind in kinds))
    return st.lists(parameters, min_size=1, max_size=5, unique_by=lambda each: each.name).map(tuple).map(Space)


@given(spaces())
def test_a_space_written_as_text_is_read_back(space: Space) -> None:
    assert parse_space(str(space), "file") == space


@given(st.text(max_size=200))
def test_any_text_is_a_space_or_refused_in_one_line_that_names_it(text: str) -> None:
    try:
        space = parse_space(text, "file")
    except UserError as error:
        assert str(error).startswith("file:") and "\n" not in str(error)
    else:
        assert parse_space(str(space), "file") == space


@pytest.mark.parametrize("code", ["__import__('os').mkdir('ran')", "(lambda: open('ran', 'w'))()", "[i for i in x]"])
def test_code_stays_text_and_is_not_executed(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (f"r choice [{code}]", f"r choice {code}", f"r uniform {code}, 1", f"r choice [{{a: {code}}}]"):
        try:
            (parameter,) = parse_space(line, "file").parameters
        except UserError as error:
            assert str(error).startswith("file:1: ")
        else:
            assert parameter.kind == "choice" and code.strip("[]").partition("(")[0] in str(parameter.values)
    assert list(tmp_path.iterdir()) == []


def drawn(space: dict[str, Any], n: int = 20, seed: int = 1) -> list[Any]:
    """What Hyperopt draws, with a seed."""
    generator = np.random.default_rng(seed)
    return [rec_eval(as_apply(sample(as_apply(space), generator))) for _ in range(n)]


FILES = [
    (ROOT / "hyper.test").read_text(),
    "learning_rate loguniform -8,0\nembedding_size choice [64,96,128]\ntrain_batch_size choice [512, 1024, 2048]\n",
    "dropout_prob uniform 0.1, 0.5\n\nd_state quniform 1,10,1\nx quniform 1,10,4\ny choice ['a', None, True, 1e-3]\n",
]


@pytest.mark.parametrize("text", FILES)
def test_values_are_those_of_recboles_parser(text: str, tmp_path: Path) -> None:
    file = tmp_path / "hyper.test"
    file.write_text(text)
    space, theirs = read_space(file), HyperTuning._build_space_from_file(file)
    assert [space.values(samples) for samples in drawn(space.hyperopt())] == drawn(theirs)


@given(spaces(st.integers(-5, 5) | st.booleans() | st.sampled_from(["a", "CE", "x-y"])))
def test_generated_files_mean_what_they_mean_to_recbole(space: Space) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".test", encoding="utf-8") as file:
        file.write(str(space))
        file.flush()
        theirs = HyperTuning._build_space_from_file(file.name)
    ours = [space.values(samples) for samples in drawn(space.hyperopt(), 3)]
    assert ours == drawn(theirs, 3)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_the_sample_of_a_value_from_a_json_file_gives_the_value_again(space: Space, seed: int) -> None:
    for samples in drawn(space.hyperopt(), 3, seed):
        values = space.values(samples)
        again = space.values(space.samples(json.loads(json.dumps(values))))
        assert json.dumps(again) == json.dumps(values)


def test_choices_are_drawn_by_their_index() -> None:
    space = parse_space("a choice [[1, 2], {max_norm: 1}, None, 1, true]", "file")
    (parameter,) = space.parameters
    assert parameter.values == ([1, 2], {"max_norm": 1}, "None", 1, True)
    assert [parameter.sample(value) for value in parameter.values] == [0, 1, 2, 3, 4]
    assert {samples["a"] for samples in drawn(space.hyperopt(), 100)} == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="2"):
        parameter.sample(2)


def test_all_of_a_finite_space_is_each_setting_once_and_more_begin_with_fewer() -> None:
    space = read_space(ROOT / "hyper.test")
    assert [parameter.name for parameter in space.parameters] == ["r", "num_layers"] and space.size() == 8
    points = space.points(8, 1)
    settings = [tuple(space.values(samples).values()) for samples in points]
    assert sorted(settings) == [(r, n) for r in (0, 2, 5, 10) for n in (1, 2)]
    assert [space.points(n, 1) for n in range(1, 9)] == [points[:n] for n in range(1, 9)]
    assert points != space.points(8, 2)
    many = parse_space(f"dropout_prob choice {[step / 100 for step in range(26)]}", "space")
    assert all(many.points(n, 2020) == many.points(26, 2020)[:n] for n in range(1, 26))


WRONG = [
    ("r choice", ["'r choice'", "name choice [1, 2]", "name quniform 1,10,1"]),
    ("r chioce [1]", ["'r chioce [1]'", "name choice [1, 2]"]),
    ("num_layer choice [1]", ["'num_layer'", "'num_layers'"]),
    ("r choice [1, -1]", ["r must be", "at least 0", "-1"]),
    ("r choice [1, 1.5]", ["r must be", "whole number", "1.5"]),
    ("r uniform 0,3", ["r must be", "whole number", "0.0"]),
    ("num_layers quniform 1,4,0.5", ["num_layers must be", "whole number", "1.5"]),
    ("form choice [paper, book]", ["form", "paper, released", "'book'"]),
    ("dropout_prob uniform 0.5,1.5", ["dropout_prob must be", "less than 1", "1.5"]),
    ("topk choice [1, 10]", ["topk cannot be tuned"]),
    ("threads choice [1, 2]", ["threads cannot be tuned"]),
]


@pytest.mark.parametrize(("line", "names"), WRONG)
def test_a_mistake_is_reported_with_its_line(line: str, names: list[str]) -> None:
    base = Config("SIGMA", "ml-100k", settings={"use_gpu": False})
    with pytest.raises(UserError) as error:
        check_space(parse_space(f"# what to try\nd_state choice [8, 16]\n{line}\n", "hyper.test"), base)
    assert str(error.value).startswith("hyper.test:3: ") and all(name in str(error.value) for name in names)


VALUES = {
    "choice": ["[]", "3", "{a: 1}", "[1e999]", "[{1}]", "[!x 1]"],
    "uniform": ["0.1", "0.1,nan", "0.5,0.1", "1,1", "a,b", "1,2,3"],
    "loguniform": ["1,800", "1"],
    "quniform": ["1,4", "1,4,0", "1,4,1e-300", "1,4,-1", "4,1,1"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in VALUES for text in VALUES[kind]])
def test_values_that_a_kind_does_not_take_are_refused(kind: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_space(f"r {kind} {text}", "file")
    assert str(error.value).startswith(f"file:1: {kind} takes ") and str(error.value).endswith(f", got {text!r}")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, ["params_file", "'{}'"]),
        (b"# nothing\n", ["{}: ", "no parameters"]),
        (b"\xff\xfe", ["{}: ", "UTF-8"]),
        (b"r choice [1]\nr choice [2]", ["{}:2: r ", "{}:1"]),
    ],
)
def test_a_file_without_parameters_is_refused(tmp_path: Path, content: bytes | None, names: list[str]) -> None:
    file = tmp_path / "hyper.test"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_space(file)
    assert all(name.replace("{}", str(file)) in str(error.value) for name in names)


def test_steps_are_whole_numbers_for_a_setting_of_whole_numbers() -> None:
    base = Config("SIGMA", "ml-100k", settings={"use_gpu": False})
    check_space(read_space(ROOT / "hyper.test"), base)
    text = "num_layers quniform 1,4,1\ndropout_prob quniform 0,0.5,0.1\nlearning_rate loguniform -8,-1 # exponents\n"
    space = parse_space(text, "f")
    check_space(space, base)
    values = space.values({"num_layers": 3.2, "dropout_prob": 0.30000000000000004, "learning_rate": np.float64(0.01)})
    assert values == {"num_layers": 3, "dropout_prob": 0.30000000000000004, "learning_rate": 0.01}
    assert [type(value) for value in values.values()] == [int, float, float]
    assert [*space.parameters[2].extremes()] == [math.exp(-8), math.exp(-1)]
