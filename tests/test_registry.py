"""Models by name, by `package.module:Class` and by class."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recbole.model.sequential_recommender import STAMP
from recbole.model.sequential_recommender import GRU4Rec as RecBoleGRU4Rec
from recbole.model.sequential_recommender import SASRec as RecBoleSASRec

from recbole_sigma.config.config import Config
from recbole_sigma.data.items import Items
from recbole_sigma.errors import UserError, did_you_mean, out_of_memory
from recbole_sigma.model.gru4rec import GRU4Rec
from recbole_sigma.model.sigma import SIGMA
from recbole_sigma.registry import build_model, find_model, model_name, model_names, n_parameters, source_digest

Module = Callable[[str, str], Path]  # the fixture `module`
OWN = """
from recbole_sigma.model.sequence import SequenceModel

class Mine(SequenceModel):
    pass

class Other:
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """`module(name, text)` writes a module into the working directory; those that a test imports are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        return file

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_short_name_is_that_of_our_class_else_of_recboles(module: Module) -> None:
    assert find_model("SIGMA") is SIGMA and find_model("GRU4Rec") is GRU4Rec and find_model("STAMP") is STAMP
    assert len(set(model_names())) == len(model_names())
    assert [model_name(find_model(name)) for name in model_names()] == model_names()
    assert model_name(RecBoleSASRec) == "recbole.model.sequential_recommender.sasrec:SASRec"
    assert find_model(model_name(RecBoleSASRec)) is find_model(RecBoleSASRec) is RecBoleSASRec
    module("my_own_models", OWN)  # in the working directory
    cls = find_model("my_own_models:Mine")
    assert cls.__name__ == "Mine" and model_name(cls, importable=True) == "my_own_models:Mine"


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("SIGMMA", ["'SIGMMA'", "'SIGMA'"]),
        ("gru4rec", ["'gru4rec'", "'GRU4Rec'"]),
        ("__class__", ["'__class__'"]),
        ("no_such_module:Mine", ["no_such_module"]),
        (":Mine", ["':Mine'"]),
        ("own:", ["'own:'"]),
        ("own:Mein", ["'Mein'", "'own'", "'Mine'"]),
        ("own:Other", ["own:Other", "SequentialRecommender"]),
        ("fails:Mine", ["fails.py:2", "ZeroDivisionError"]),
        ("exits:Mine", ["exits.py:2", "SystemExit"]),
        ("__main__:Mine", ["'Mine'", "module"]),
        (dict, ["dict", "SequentialRecommender"]),
    ],
)
def test_what_is_no_model_is_refused_by_name(module: Module, model: str | type, named: list[str]) -> None:
    module("own", OWN)
    module("fails", "\n1 / 0")
    module("exits", "\nraise SystemExit(3)")
    with pytest.raises(UserError) as refused:
        find_model(model)
    assert all(each in str(refused.value) for each in named), refused.value


def test_a_class_of_a_script_or_a_function_has_no_name_for_another_process() -> None:
    class Mine(SIGMA):
        pass

    script = type("Mine", (SIGMA,), {"__module__": "__main__"})
    assert model_name(script) == "__main__:Mine" and "<locals>" in model_name(Mine)
    for cls in (script, Mine):
        with pytest.raises(UserError, match=r"'.*Mine'.* put the class into a module"):
            model_name(cls, importable=True)


def test_the_digest_follows_the_source_of_a_class_and_of_its_bases(module: Module) -> None:
    file = module("base_models", OWN)
    digest = source_digest(find_model("base_models:Mine"))
    assert digest == hashlib.sha256(OWN.encode()).hexdigest()
    module("derived_models", "from base_models import Mine\n\nclass Derived(Mine):\n    pass\n")
    derived = find_model("derived_models:Derived")
    before = source_digest(derived)
    file.write_text(f"{OWN}# changed")
    assert source_digest(derived) != before and before != digest
    assert source_digest(SIGMA) is source_digest(STAMP) is source_digest(RecBoleGRU4Rec) is None


@pytest.mark.parametrize("name", ["SIGMA", "BERT4Rec", "GRU4Rec"])
def test_parameters_are_counted_as_the_model_that_is_built_has_them(name: str) -> None:
    config = Config(name, "", settings={"use_gpu": False}, need_data=False)
    model = build_model(config, Items(20))
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == n_parameters(config, 20)


@pytest.mark.parametrize(("name", "refusal"), [("STAMP", UserError), ("SIGMA", KeyError)])
def test_what_recboles_models_refuse_is_a_user_error_and_an_error_in_ours_is_not(
    name: str, refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KeyError("a column")

    config = Config(name, "", settings={"use_gpu": False}, need_data=False)
    monkeypatch.setattr(config.model_class, "__init__", refuse)
    with pytest.raises(refusal, match="a column"):
        build_model(config, Items(20))


def test_memory_that_runs_out_is_a_user_error_and_other_errors_are_not() -> None:
    with pytest.raises(UserError, match=r"memory.*train_batch_size"), out_of_memory():
        bytearray(2**60)
    with pytest.raises(RuntimeError, match="other"), out_of_memory():
        raise RuntimeError("other")


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert str(UserError("a\nb\x1b[31m\u2028")) == r"a\nb\x1b[31m\u2028"
    assert len(str(UserError("x" * 10**6))) < 1000
    assert did_you_mean("k" * 10**6, ["known"]) == ""
