"""Distillation: the student's targets, half from the data and half from a trained model's softmax."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from recbole_sigma import Recommender, run
from recbole_sigma.config.config import Config
from recbole_sigma.data.preparation import load
from recbole_sigma.registry import build_model
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.reader import load_model
from recbole_sigma.training.distillation import Teacher
from tests.helpers.models import refused
from tests.helpers.runs import ON_CPU


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings for a data set `tiny` of 12 users and 7 items."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    rows = [f"u{u}\ti{(3 * t + u * u) % 7}\t{t}" for u in range(12) for t in range(5 + u % 5)]
    text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows])
    (folder / "tiny.inter").write_text(text + "\n", encoding="utf-8")
    fixed = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "state": "ERROR", "epochs": 1}
    return lambda **given: {**ON_CPU, **fixed, "MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8, **given}


@pytest.mark.parametrize(
    ("student", "mode"), [("EMARec", "sequence"), ("SASRec", "sequence"), ("ECHO", "prefix"), ("SASRec", "prefix")]
)
def test_the_loss_is_cross_entropy_with_the_mixed_targets(settings: Any, student: str, mode: str) -> None:
    teacher = run("EMARec", "tiny", settings=settings(cosine_temperature=0.1)).folder
    given = settings(distill_from=str(teacher), distill_share=0.3, train_mode=mode)
    dropouts = ("hidden_dropout_prob", "attn_dropout_prob") if student == "SASRec" else ("dropout_prob",)
    given |= dict.fromkeys(dropouts, 0.0)
    config = Config(student, "tiny", settings=given)
    data = load(config)
    model: Any = build_model(config, data.train.dataset)
    model.teacher = Teacher(config, data.dataset)
    rows = next(iter(load(Config(student, "tiny", settings={**given, "train_mode": "prefix"})).train))
    with torch.no_grad():  # the batch has all samples: of the prefixes in another order, with the same mean
        loss = model.calculate_loss(next(iter(data.train)))
        soft = load_model(teacher).model.full_sort_predict(rows).softmax(1)
        targets = 0.7 * one_hot(rows["item_id"], model.n_items) + 0.3 * soft
        expected = cross_entropy(model.full_sort_predict(rows), targets)
    torch.testing.assert_close(loss, expected)
    assert not any("teacher" in name for name in model.state_dict())


def test_a_student_is_trained_repeated_and_served_without_its_teacher(settings: Any, tmp_path: Path) -> None:
    teacher = run("EMARec", "tiny", settings=settings()).folder
    first = run("SIGMA", "tiny", settings=settings(distill_from=str(teacher), head="history"))
    again = run("SIGMA", "tiny", settings=settings(distill_from=str(teacher), head="history"))
    other = run("SIGMA", "tiny", settings=settings(head="history"))
    weights, same, others = (RunFolder(each.folder).load_weights() for each in (first, again, other))
    assert all(torch.equal(each, same[name]) for name, each in weights.items())
    assert not torch.equal(weights["item_embedding.weight"], others["item_embedding.weight"])
    teacher.rename(tmp_path / "gone")
    assert Recommender.load(first.folder).recommend([["i1", "i2"]], k=2)


def test_what_cannot_teach_is_refused(settings: Any, tmp_path: Path) -> None:
    with refused("distill_from", "not a run directory"):
        Config("SIGMA", "tiny", settings=settings(distill_from=str(tmp_path)))
    pop = run("Pop", "tiny", settings={k: v for k, v in settings().items() if k != "hidden_size"}).folder
    with refused("distill_from", "Pop"):
        run("SIGMA", "tiny", settings=settings(distill_from=str(pop)))
    echo = run("ECHO", "tiny", settings=settings()).folder
    with refused("distill_from", "BERT4Rec", "within a history"):
        Config("BERT4Rec", "tiny", settings=settings(distill_from=str(echo)))
    with refused("distill_from", "ECHO", "train_mode: prefix"):
        run("SIGMA", "tiny", settings=settings(distill_from=str(echo)))
    short = run("SASRec", "tiny", settings=settings(MAX_ITEM_LIST_LENGTH=3)).folder
    with refused("distill_from", "MAX_ITEM_LIST_LENGTH: 3"):
        run("SIGMA", "tiny", settings=settings(distill_from=str(short)))
    with refused("label_smoothing", "distill_from"):
        Config("SIGMA", "tiny", settings=settings(distill_from=str(echo), label_smoothing=0.1))
    with refused("distill_from", "BPR"):
        Config("SIGMA", "tiny", settings=settings(distill_from=str(echo), loss_type="BPR"))
    with refused("distill_digest"):
        run("SIGMA", "tiny", settings=settings(distill_from=str(echo), distill_digest="0" * 16, train_mode="prefix"))
