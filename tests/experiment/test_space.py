"""Parameter files: what they mean is what RecBole makes of them, and nothing in them is run."""

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
from recbole_sigma.experiment.space import (
    Choice,
    LogUniform,
    QUniform,
    Space,
    Uniform,
    check_space,
    parse_space,
    read_space,
)

ROOT = Path(__file__).parents[2]

names = st.from_regex(r"[A-Za-z_][A-Za-z_0-9@]{0,20}", fullmatch=True)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)  # fmt: skip
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
bounds = st.tuples(*[st.floats(-600, 600, allow_nan=False)] * 2).filter(lambda pair: pair[0] < pair[1])


def parameters(values: Any = nested) -> Any:
    return st.one_of(
        st.builds(Choice, names, st.lists(values, min_size=1, max_size=5).map(tuple)),
        st.builds(lambda name, pair: Uniform(name, *pair), names, bounds),
        st.builds(lambda name, pair: LogUniform(name, *pair), names, bounds),
        st.builds(lambda name, pair, q: QUniform(name, *pair, q), names, bounds, st.floats(0.01, 10)),
    )


def spaces(values: Any = nested) -> Any:
    different = st.lists(parameters(values), min_size=1, max_size=5, unique_by=lambda each: each.name)
    return different.map(lambda found: Space(tuple(found)))


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


CODE = [
    "__import__('os').mkdir('ran')",
    "(lambda: open('ran', 'w'))()",
    "print(1)",
    "exec('x=1')",
    "a.b",
    "[i for i in x]",
]


@pytest.mark.parametrize("code", CODE)
def test_code_stays_text_and_is_not_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (f"r choice [{code}]", f"r choice {code}", f"r uniform {code}, 1", f"r choice [{{a: {code}}}]"):
        try:
            (parameter,) = parse_space(line, "file").parameters
        except UserError as error:
            assert str(error).startswith("file:1: ")
        else:
            assert isinstance(parameter, Choice) and code.strip("[]").partition("(")[0] in str(parameter.values)
    assert list(tmp_path.iterdir()) == []


def drawn(space: dict[str, Any], n: int = 20) -> list[Any]:
    """What Hyperopt draws, with a seed."""
    generator = np.random.default_rng(1)
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
    space = read_space(file)
    assert drawn(space.hyperopt()) == drawn(HyperTuning._build_space_from_file(file))
    assert [space.values(each) for each in drawn(space.hyperopt())] == drawn(space.hyperopt())


@given(spaces(st.integers(-5, 5) | st.booleans() | st.sampled_from(["a", "CE", "x-y"])))
def test_generated_files_mean_what_they_mean_to_recbole(space: Space) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".test", encoding="utf-8") as file:
        file.write(str(space))
        file.flush()
        theirs = HyperTuning._build_space_from_file(file.name)
    assert repr(drawn(space.hyperopt(), 3)) == repr(drawn(theirs, 3))


@pytest.mark.parametrize(
    "line", ["r choice [0, 2]", "x uniform 0.1,0.5", "x loguniform -8,-1", "x quniform 1,9,2", "x quniform 1,9,4"]
)
def test_ray_draws_from_the_same_values(line: str) -> None:
    (parameter,) = parse_space(line, "file").parameters
    domain = parameter.ray()
    values = [parameter.value(domain.sample()) for _ in range(300)]
    ours = [parameter.value(each[parameter.name]) for each in drawn({parameter.name: parameter.hyperopt()}, 300)]
    if isinstance(parameter, (Choice, QUniform)):
        assert set(values) == set(ours)
    else:
        low, high = parameter.extremes()
        assert low <= min(values) <= max(values) <= high and abs(np.median(values) - np.median(ours)) < (high - low) / 4


def test_lists_and_mappings_are_drawn_by_their_place() -> None:
    (parameter,) = parse_space("a choice [[1, 2], {max_norm: 1}, None]", "file").parameters
    assert isinstance(parameter, Choice) and parameter.values == ([1, 2], {"max_norm": 1}, "None")
    assert [parameter.value(parameter.sample(place)) for place in range(3)] == list(parameter.values)
    assert all(each["a"] in (0, 1, 2) for each in drawn({"a": parameter.hyperopt()}))


def test_all_of_a_finite_space_is_each_setting_once_and_more_begin_with_fewer() -> None:
    space = parse_space("r choice [0, 2, 5, 10]\nnum_layers choice [1, 2]", "file")
    places = space.places(None, 1)
    settings = [space.values(space.samples(each)) for each in places]
    assert sorted((each["r"], each["num_layers"]) for each in settings) == [
        (r, n) for r in (0, 2, 5, 10) for n in (1, 2)
    ]
    assert [space.places(n, 1) for n in range(1, 9)] == [places[:n] for n in range(1, 9)]
    assert places != space.places(None, 2)


FORMS = "'name choice [1, 2]', 'name uniform 0.1,0.5', 'name loguniform -8,0' or 'name quniform 1,10,1'"
WRONG = [
    ("r choice", f"a parameter is written {FORMS}, got 'r choice'"),
    ("r chioce [1]", "kind must be one of choice, uniform, loguniform, quniform, got 'chioce'; did you mean 'choice'?"),
    ("r choice 3", "choice takes a list such as [0.1, 0.2] or [CE, BPR], got '3'"),
    ("r choice []", "choice takes a list such as [0.1, 0.2] or [CE, BPR], got '[]'"),
    ("r choice [1e999]", "choice takes finite numbers, got '[1e999]'"),
    ("r choice [{1}]", "choice takes numbers, text, true, false, lists and mappings, got a set"),
    ("dropout_prob uniform 0.1", "uniform takes the numbers low,high, got '0.1'"),
    ("dropout_prob uniform 0.1,nan", "uniform takes the numbers low,high, got '0.1,nan'"),
    ("dropout_prob uniform 0.5,0.1", "low must be less than high, got '0.5,0.1'"),
    ("num_layers quniform 1,4", "quniform takes the numbers low,high,q, got '1,4'"),
    ("num_layers quniform 1,4,0", "q must be greater than 0, got '1,4,0'"),
    ("learning_rate loguniform 1,800", "the numbers of loguniform are exponents of e; exp(800) is too large"),
    ("rr choice [1]", "unknown setting 'rr'; did you mean 'r'?"),
    ("r choice [1, -1]", "r must be at least 0, got -1"),
    ("r choice [1, 1.5]", "r must be a whole number, got 1.5"),
    ("r uniform 0,3", "r must be a whole number, got 0.0"),
    ("num_layers quniform 1,4,0.5", "num_layers must be a whole number, got 0.5"),
    ("form choice [paper, book]", "form must be one of paper, released, got 'book'"),
    ("dropout_prob uniform 0.5,1.5", "dropout_prob must be at least 0 and less than 1, got 1.5"),
    ("topk choice [1, 10]", "topk cannot be tuned: it is the same for all trials that are compared"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), WRONG)
def test_a_mistake_is_told_with_its_line(line: str, says: str) -> None:
    base = Config("SIGMA", "ml-100k", settings={"use_gpu": False})
    with pytest.raises(UserError) as error:
        check_space(parse_space(f"# what to try\nd_state choice [8, 16]\n{line}\n", "hyper.test"), base)
    assert str(error.value) == f"hyper.test:3: {says}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "params_file '{}' does not exist"),
        (b"", "{}: no parameters; one a line, written "),
        (b"# nothing\n", "{}: no parameters; one a line, written "),
        (b"\xff\xfe", "{}: not a text file in UTF-8"),
        (b"r choice [1]\nr choice [2]", "{}:2: r is given twice, first in {}:1"),
        (b"#" * 70_000, "{}: more than 65536 bytes; is it a file of parameters?"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "hyper.test"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_space(file)
    assert str(error.value).startswith(says.replace("{}", str(file)))


def test_steps_are_whole_numbers_for_a_setting_of_whole_numbers() -> None:
    text = "num_layers quniform 1,4,1\ndropout_prob quniform 0,0.5,0.1\nlearning_rate loguniform -8,-1 # exponents\n"
    space = check_space(parse_space(text, "f"), Config("SIGMA", "ml-100k", settings={"use_gpu": False}))
    values = space.values({"num_layers": 3.0, "dropout_prob": 0.30000000000000004, "learning_rate": np.float64(0.01)})
    assert values == {"num_layers": 3, "dropout_prob": 0.30000000000000004, "learning_rate": 0.01}
    assert [type(each) for each in values.values()] == [int, float, float]
    assert [*space.parameters[2].extremes()] == [math.exp(-8), math.exp(-1)]


def test_the_file_at_the_top_level_is_right() -> None:
    space = check_space(read_space(ROOT / "hyper.test"), Config("SIGMA", "ml-100k", settings={"use_gpu": False}))
    assert [each.name for each in space.parameters] == ["r", "num_layers"] and space.size() == 8
