"""`co_occurrence`: what other users had near the history's items, mixed with the model's softmax."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from recbole_sigma import Recommender, run
from recbole_sigma.data import data_preparation
from recbole_sigma.model import co_occurrence
from recbole_sigma.registry import build_model
from tests.helpers.models import refused

SHARE = 0.4


def slow_mixture(scores: list[float], histories: list[list[int]], history: list[int]) -> list[float]:
    """Log of the mixture for one history, from the training histories of all users, pair by pair."""
    popularity: dict[int, int] = defaultdict(int)
    table: dict[tuple[int, int], float] = defaultdict(float)
    for own in histories:
        for t, item in enumerate(own):
            popularity[item] += 1
            for s, other in enumerate(own):
                if s != t and abs(s - t) <= co_occurrence.REACH:
                    direction = 1 if s > t else co_occurrence.BACKWARD
                    table[item, other] += direction * co_occurrence.GAP ** (abs(s - t) - 1)
    mass = [0.0] * len(scores)
    for age, item in enumerate(reversed(history)):
        for other in range(len(scores)):
            if count := table.get((item, other)):
                both = popularity[item] * popularity[other]
                mass[other] += co_occurrence.AGE**age * count / both**co_occurrence.POPULARITY
    total = math.fsum(math.exp(score) for score in scores)
    share = SHARE / math.fsum(mass)
    softmax = [math.exp(score) / total for score in scores]
    return [math.log((1 - SHARE) * own + share * theirs) for own, theirs in zip(softmax, mass, strict=True)]


@pytest.fixture
def tiny(write_inter: Any, read_tiny: Any) -> Any:
    """`tiny(name, **settings)` -> (model, test batch, the training histories)"""
    write_inter([(f"u{u}", f"i{(3 * t + u * u) % 7}", t) for u in range(12) for t in range(5 + u % 5)])

    def make(name: str, **settings: Any) -> tuple[Any, Any, list[list[int]]]:
        dataset = read_tiny(name, MAX_ITEM_LIST_LENGTH=6, **settings)
        train, _, test = data_preparation(dataset.config, dataset)
        init_seed(0, True)
        model = build_model(dataset.config, train.dataset).eval()
        number = {token: i for i, token in enumerate(dataset.field2id_token["item_id"])}
        histories = [[number[f"i{(3 * t + u * u) % 7}"] for t in range(3 + u % 5)] for u in range(12)]  # without two
        return model, next(iter(test))[0], histories

    return make


@pytest.mark.parametrize("mode", ["prefix", "sequence"])
@pytest.mark.parametrize("head", ["plain", "history"])
def test_scores_are_the_mixture(tiny: Any, mode: str, head: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(co_occurrence, "ROWS", 5)  # of twelve
    plain, batch, histories = tiny("EMARec", train_mode=mode, head=head)
    mixed, _, _ = tiny("EMARec", train_mode=mode, head=head, co_occurrence=SHARE)
    assert [*dict(mixed.named_parameters())] == [*dict(plain.named_parameters())]
    with torch.no_grad():
        before, after = plain.full_sort_predict(batch), mixed.full_sort_predict(batch)  # the head adds 0 so far
    rows = zip(batch["item_id_list"].tolist(), batch["item_length"].tolist(), strict=True)
    expected = [
        slow_mixture(scores, histories, history[:length])
        for scores, (history, length) in zip(before.tolist(), rows, strict=True)
    ]
    torch.testing.assert_close(after, torch.tensor(expected), atol=2e-5, rtol=2e-5)


def test_an_item_that_nobody_had_near_keeps_the_models_order(tiny: Any):
    model, batch, _ = tiny("EMARec", co_occurrence=SHARE)
    table = model.co_occurrence
    table.counts.zero_()
    scores = torch.randn(2, model.n_items)
    history, lengths = batch["item_id_list"][:2], batch["item_length"][:2]
    mixed = table(scores, history, lengths)
    assert torch.equal(mixed.argsort(1), scores.argsort(1)) and mixed.isfinite().all()


def test_only_the_strongest_neighbours_are_kept(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    whole = tiny("EMARec", co_occurrence=SHARE)[0].co_occurrence
    monkeypatch.setattr(co_occurrence, "NEIGHBOURS", 2)
    short = tiny("EMARec", co_occurrence=SHARE)[0].co_occurrence
    assert torch.equal(short.counts, whole.counts[:, :2]) and torch.equal(short.neighbours, whole.neighbours[:, :2])
    assert (short.counts[1:] > 0).any()


def test_of_files_that_list_histories_targets_and_histories_are_paired(tmp_path: Any, read_tiny: Any):
    (tmp_path / "tiny").mkdir()
    for split, rows in {"train": ["1 a b_c", "2 d b"], "valid": ["1 e b"], "test": ["1 f b"]}.items():
        header = "user_id:token item_id:token item_id_list:token_seq"
        lines = [row.replace(" ", "\t").replace("_", " ") for row in (header.replace("_", "~"), *rows)]
        text = "\n".join(lines).replace("~", "_") + "\n"
        (tmp_path / "tiny" / f"tiny.{split}.inter").write_text(text)
    files = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"]}
    dataset = read_tiny("EMARec", co_occurrence=SHARE, **files)
    train, _, _ = data_preparation(dataset.config, dataset)
    names = dataset.field2id_token["item_id"]
    table = co_occurrence.pairs(train.dataset.inter_feat, len(names)).tocoo()
    found = {names[row] + names[column] for row, column in zip(table.row, table.col, strict=True)}
    assert found == {"ba", "ab", "ca", "ac", "bc", "cb", "bd", "db"}


def test_what_is_a_hundred_items_old_adds_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    table = tiny("EMARec", co_occurrence=SHARE)[0].co_occurrence
    history, lengths = torch.randint(1, 8, (3, 300)), torch.tensor([300, 100, 7])
    history[torch.arange(300) >= lengths[:, None]] = 0
    scores = torch.randn(3, 8)
    short = table(scores, history, lengths)
    monkeypatch.setattr(co_occurrence, "RECENT", 300)
    torch.testing.assert_close(short, table(scores, history, lengths), atol=1e-6, rtol=1e-6)


def test_a_model_without_a_softmax_is_refused(sample_config: Any):
    with refused("co_occurrence", "Pop"):
        sample_config("Pop", co_occurrence=0.1)


def test_a_run_serves_sessions_and_is_continued(tmp_path: Any, write_inter: Any):
    data = write_inter([(f"u{u}", f"i{(3 * t + u * u) % 7}", t) for u in range(12) for t in range(5 + u % 5)])
    settings = {
        "data_path": str(data.parent.parent), "use_gpu": False, "epochs": 1, "co_occurrence": SHARE, "head": "history",
        "checkpoint_dir": str(tmp_path / "saved"), "show_progress": False,
    }  # fmt: skip
    first = run("EMARec", data.parent.name, settings=settings)
    recommender = Recommender.load(first.folder)
    history = ["i1", "i4", "i0", "i2"]
    session = recommender.session(history)
    assert session.streams
    for (item, score), (same, expected) in zip(session.top_k(3), recommender.recommend([history], k=3)[0], strict=True):
        assert item == same and score == pytest.approx(expected, abs=1e-4)
    again = run("EMARec", data.parent.name, settings={**settings, "init_from": str(first.folder)})
    assert again.test
