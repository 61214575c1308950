"""A session answers as a new pass over its history would, at the cost of one item; its state travels as bytes."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from recbole_sigma import Recommender, run
from recbole_sigma.runs.files import digest
from tests.helpers.models import refused
from tests.helpers.runs import OUR_SIZE, SIZES, TINY


@pytest.fixture(scope="module")
def recommenders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded: dict[str, Recommender] = {}

    def get(model: str) -> Recommender:
        if model not in loaded:
            name, _, kind = model.partition(" ")
            settings: dict[str, Any] = {**TINY, **SIZES.get(name, OUR_SIZE), "epochs": 1, "MAX_ITEM_LIST_LENGTH": 30}
            settings["checkpoint_dir"] = str(tmp_path_factory.mktemp("saved"))
            settings |= {"": {}, "head": {"head": "history"}, "cosine": {"cosine_temperature": 0.1}}[kind]
            if name == "Ensemble":
                members = [run(each, "ml-100k", settings=settings).folder for each in ("SIGMA", "Mamba4Rec")]
                settings = {**settings, "members": [*map(str, members)]}
                del settings["hidden_size"], settings["d_state"]
            loaded[model] = Recommender.load(run(name, "ml-100k", settings=settings).folder)
        return loaded[model]

    return get


STREAMING = ["Mamba4Rec", "RecMamba", "EMARec", "GRU4Rec", "SIGMA", "Mamba4Rec head", "GRU4Rec head"]
STREAMING += ["EMARec cosine", "Ensemble head"]


@pytest.mark.parametrize("model", [*STREAMING, "ECHO", "SASRec"])
def test_a_session_gives_the_lists_of_its_history(recommenders: Any, model: str):
    rec = recommenders(model)
    history = np.random.default_rng(1).choice(rec.items, 25).tolist()
    session = rec.session(history[:3])
    for n in range(3, 26):
        (expected,) = rec.recommend([history[:n]], k=5)
        best = session.top_k(5)
        assert [score for _, score in best] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert not {item for item, _ in best} & {*history[:n]}
        if n < 25:
            assert session.append(history[n])
    assert session.history == history and len(session) == 25 and session.streams == (model in STREAMING)


def test_beyond_the_longest_history_of_training_a_session_reads_on(recommenders: Any):
    rec = recommenders("Mamba4Rec")
    history = np.random.default_rng(2).choice(rec.items, 300).tolist()
    (numbers,), _ = rec.numbers([history], "error")
    with torch.no_grad():
        whole = rec.model(torch.from_numpy(numbers)[None], torch.tensor([300])) @ rec.model.item_embedding.weight.T
    scores = dict(zip(rec.items, whole[0, 1:].tolist(), strict=True))
    for item, score in rec.session(history).top_k(5):
        assert score == pytest.approx(scores[item], abs=1e-5)
    recomputed = recommenders("SASRec")
    assert recomputed.session(history).top_k(3) == recomputed.recommend([history], k=3)[0]  # of the last 30 items


@pytest.mark.parametrize("model", [*STREAMING, "SASRec"])
@pytest.mark.parametrize("length", [0, 1, 12, 40])
def test_a_restored_session_continues(recommenders: Any, model: str, length: int):
    rec = recommenders(model)
    items = np.random.default_rng(3).choice(rec.items, length + 2).tolist()
    session = rec.session(items[:length])
    restored = rec.restore_session(session.to_bytes())
    for each in (session, restored):
        each.extend(items[length:])
    assert restored.history == session.history == items and restored.top_k(10) == session.top_k(10)


def test_a_state_of_another_model_or_a_damaged_one_is_refused(recommenders: Any):
    rec = recommenders("Mamba4Rec")
    state = rec.session(rec.items[:5]).to_bytes()
    with refused("another model"):
        recommenders("SIGMA").restore_session(state)
    for damaged in (b"", state[:100], state[:-3], b"\x80\x04K\x01.", state[:-5] + b"\1\2\3\4\5"):
        with refused("session"):
            rec.restore_session(damaged)
    tensors = load(state)
    tensors["format"] = torch.tensor(list(b"99"), dtype=torch.uint8)
    with refused("99", "version"):
        rec.restore_session(save(tensors))


def test_a_state_of_wrong_shapes_is_refused_even_with_its_right_digest(recommenders: Any):
    rec = recommenders("Mamba4Rec")
    for name, tensor in {
        "state.0.scan": torch.zeros(1, 1), "state.0.window": torch.zeros(0, 32), "seen": torch.tensor([10**9]),
        "state.0.more": torch.zeros(1), "representation": torch.zeros(3),
    }.items():  # fmt: skip
        tensors = load(rec.session(rec.items[:5]).to_bytes())
        tensors[name] = tensor
        content = {key: each for key, each in tensors.items() if key not in ("format", "model", "digest")}
        tensors["digest"] = torch.tensor(list(digest(dict(sorted(content.items()))).encode()), dtype=torch.uint8)
        with refused("session: damaged"):
            rec.restore_session(save(tensors))


def test_unknown_items_do_not_enter_a_session(recommenders: Any):
    rec = recommenders("GRU4Rec")
    session = rec.session()
    assert session.top_k(2) == rec.recommend([[]], k=2)[0]
    assert not session.append("no such item") and session.append(50) and session.history == ["50"]
    with refused("no such item"):
        session.append("no such item", on_unknown="error")
