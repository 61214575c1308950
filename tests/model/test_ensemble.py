"""Ensemble: the product of its members' softmaxes, one model in a directory of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_sigma import Recommender, run
from recbole_sigma.data.preparation import load
from recbole_sigma.inference.export import export
from recbole_sigma.model.ensemble import Ensemble
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.reader import load_model
from tests.helpers.models import OURS, refused
from tests.helpers.runs import ON_CPU

SIZE = {"hidden_size": 8, "MAX_ITEM_LIST_LENGTH": 6, "epochs": 1, "head": "history"}


class Weighted(Ensemble):
    """As a user's own."""


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """`train(model, setting=value, ...)` -> the directory of a run on a data set of 12 users and 7 items."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    rows = [f"u{u}\ti{(3 * t + u * u) % 7}\t{t}" for u in range(12) for t in range(5 + u % 5)]
    text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows])
    (folder / "tiny.inter").write_text(text + "\n", encoding="utf-8")
    fixed = {**ON_CPU, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "state": "ERROR"}
    own: Any = {"Ensemble": {"MAX_ITEM_LIST_LENGTH": 6}, Weighted: {"MAX_ITEM_LIST_LENGTH": 6}, "Pop": {}}
    return lambda model, **given: run(model, "tiny", settings={**fixed, **own.get(model, SIZE), **given}).folder


def scores(folder: Path) -> torch.Tensor:
    """Of all items, for the test users of the run's data."""
    loaded = load_model(folder)
    with torch.no_grad():
        return torch.cat([loaded.model.full_sort_predict(rows) for rows, *_ in load(loaded.config).test])


@pytest.mark.parametrize("model", [*OURS, "GRU4Rec", "SASRec", "BERT4Rec"])
def test_its_softmax_is_the_geometric_mean_of_the_members(train: Any, model: str) -> None:
    own = {"dropout_prob": 0.1} if model == "LinRec" else {}
    members = [train(model, cosine_temperature=0.1, **own), train("EMARec", num_layers=1, hidden_size=4)]
    together = scores(train("Ensemble", members=[*map(str, members)])).softmax(1)
    product = torch.stack([scores(each).log_softmax(1) for each in members]).mean(0).exp()
    torch.testing.assert_close(together, product / product.sum(1, keepdim=True))


def test_of_one_run_it_sets_the_table_of_co_occurrences_afterwards(train: Any) -> None:
    alone = train("Ensemble", members=[str(train("EMARec"))], co_occurrence=0.4)
    torch.testing.assert_close(scores(alone), scores(train("EMARec", co_occurrence=0.4)))


def test_a_class_of_ones_own_gets_the_members_weights(train: Any) -> None:
    member = train("EMARec")
    weights = RunFolder(train(Weighted, members=[str(member)] * 2)).load_weights()
    expected = RunFolder(member).load_weights()["item_embedding.weight"]
    assert torch.equal(weights["members.0.item_embedding.weight"], expected)


def test_it_is_served_exported_and_taught_from_after_its_members_are_gone(train: Any, tmp_path: Path) -> None:
    members = [train("SIGMA"), train("GRU4Rec", head="plain")]
    ensemble = train("Ensemble", members=[*map(str, members)], co_occurrence=0.4)
    before = Recommender.load(ensemble).recommend([["i1", "i2"], []], k=3)
    for member in members:
        shutil.rmtree(member)
    recommender = Recommender.load(ensemble)
    assert recommender.recommend([["i1", "i2"], []], k=3) == before
    session = recommender.session(["i1"])
    session.append("i2")
    assert [item for item, _ in session.top_k(3)] == [item for item, _ in before[0]]
    assert export(ensemble, tmp_path / "exported", "torch") < 1e-4
    assert train("EMARec", distill_from=str(ensemble), epochs=1).is_dir()


def test_what_is_no_member_is_refused(train: Any, tmp_path: Path) -> None:
    ema, narrow = str(train("EMARec")), str(train("EMARec", MAX_ITEM_LIST_LENGTH=3))
    with refused("members", "needs run directories", "--members=[RUN,RUN]"):
        train("Ensemble")
    with refused("members", "a list of run directories"):
        train("Ensemble", members=[])
    with refused("members", "not a run directory"):
        train("Ensemble", members=[ema, str(tmp_path)])
    with refused("members", "EMARec reads 3 items", "MAX_ITEM_LIST_LENGTH: 3"):
        train("Ensemble", members=[narrow, ema])
    with refused("members", "Pop", "no product"):
        train("Ensemble", members=[ema, str(train("Pop"))])
    with refused("members", "an ensemble", "write its members"):
        train("Ensemble", members=[ema, str(train("Ensemble", members=[ema, ema]))])
    with refused("members", "a table of co-occurrences", "co_occurrence: 0.2"):
        train("Ensemble", members=[ema, str(train("EMARec", co_occurrence=0.2))])
    config = Path(ema, "config.yaml")
    config.write_text(config.read_text().replace("n_decays: ", "n_decay: "))
    with refused("members", "a run of EMARec", "n_decay"):
        train("Ensemble", members=[ema, ema])


def test_members_are_as_recorded_and_have_the_items_of_the_data(train: Any, tmp_path: Path) -> None:
    ema, other = train("EMARec"), train("EMARec", seed=1)
    folder = train("Ensemble", members=[str(ema), str(other)])
    shutil.copy(other / "model.safetensors", ema)
    with refused("members", "the weights of", str(ema)):
        run("Ensemble", "tiny", [folder / "config.yaml"])
    with refused("members", "3 directories for 2 members", "leave out member_settings"):
        run("Ensemble", "tiny", [folder / "config.yaml"], {"members": [str(other)] * 3})
    split = {"split": {"LS": "valid_only"}}
    early = train("EMARec", eval_args=split)
    with refused("members", "another eval_args split", "may have learned from what is tested"):
        train("Ensemble", members=[str(early), str(early)])
    with refused("distill_from", "another eval_args split"):
        train("EMARec", distill_from=str(early))
    shutil.copy(train("SASRec") / "model.safetensors", early)
    with refused("members", "has not the weights of EMARec"):
        train("Ensemble", members=[str(early), str(early)], eval_args=split)
    data = tmp_path / "tiny" / "tiny.inter"
    before = data.read_text()
    data.write_text(f"{before}u0\ti1\t99\n")
    with refused("members", str(other), "another tiny.inter"):
        train("Ensemble", members=[str(other), str(other)])
    with refused("distill_from", str(other), "another tiny.inter"):
        train("EMARec", distill_from=str(other))
    data.write_text(before.replace("i6", "j6"))
    with refused("items.json", "'i6'", "'j6'"):
        train("Ensemble", members=[str(other), str(other)])
