"""`head: history`: fitted beside the model, on any model's scores."""

from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor

from recbole_sigma import run
from recbole_sigma.data import data_preparation
from recbole_sigma.model.history_head import HistoryHead, samples_of
from recbole_sigma.registry import build_model
from recbole_sigma.runs.folder import RunFolder
from tests.helpers.runs import TINY

NAMES = ["SIGMA", "Mamba4Rec", "ECHO", "RecMamba", "LinRec", "GRU4Rec", "SASRec", "BERT4Rec", "FEARec", "NARM"]
MODES = [(name, "prefix") for name in NAMES] + [(name, "sequence") for name in ("SIGMA", "RecMamba", "SASRec")]


def slow_head(scores: Tensor, histories: list[list[int]], w_seen: Any, w_last: Any) -> Tensor:
    scores = scores.clone()
    for row, history in enumerate(histories):
        for item in set(history):
            scores[row, item] += w_seen
        scores[row, history[-1]] += w_last
    return scores


@pytest.fixture
def trained(write_inter: Any, read_tiny: Any) -> Any:
    """`trained(name, mode, head)` -> model, one of its training batches, and the loss after backward."""

    def make(name: str, mode: str, head: str) -> tuple[Any, Interaction, Tensor]:
        write_inter([(f"u{u}", f"i{(3 * t + u) % 7}", t) for u in range(12) for t in range(4 + u % 5)])
        dataset = read_tiny(name, train_mode=mode, head=head, MAX_ITEM_LIST_LENGTH=6, train_batch_size=64)
        train, _, _ = data_preparation(dataset.config, dataset)
        init_seed(0, True)
        model = build_model(dataset.config, train.dataset)
        init_seed(1, True)  # masks and negatives come from NumPy's and Python's generators
        (batch,) = train
        loss = model.calculate_loss(batch)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        return model, batch, loss

    return make


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_the_model_learns_exactly_what_it_learns_without_the_head(trained: Any, name: str, mode: str):
    plain, _, expected = trained(name, mode, "plain")
    model, _, loss = trained(name, mode, "history")
    assert torch.equal(loss, expected)
    own = dict(model.named_parameters())
    head = own.pop("history_head.weights")
    assert own.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(own[key].grad, each.grad) for key, each in plain.named_parameters() if each.grad is not None)
    assert head.grad is not None and head.grad.abs().min() > 0
    assert model.training and type(model).__name__ == name


@pytest.mark.parametrize("name", NAMES)
def test_the_head_changes_the_scores_of_the_history_only(trained: Any, name: str):
    model, _, _ = trained(name, "prefix", "history")
    model.eval()
    histories = [[1, 2, 1], [3], [4, 5, 6, 2, 1, 3]]
    items = torch.tensor([history + [0] * (6 - len(history)) for history in histories])
    rows = Interaction(
        {"item_id_list": items, "item_length": torch.tensor([3, 1, 6]), "item_id": torch.tensor([1, 2, 3])}
    )
    with torch.no_grad():
        plain = model.full_sort_predict(rows).view(3, -1)
        model.history_head.weights.copy_(torch.tensor([-0.5, -0.25]))
        scores = model.full_sort_predict(rows).view(3, -1)
        predicted = model.predict(rows)
    torch.testing.assert_close(scores, slow_head(plain, histories, -5.0, -2.5))
    torch.testing.assert_close(predicted, scores[torch.arange(3), [1, 2, 3]])


def test_the_head_is_fitted_by_the_cross_entropy_of_the_corrected_scores():
    torch.manual_seed(0)
    head = HistoryHead().double()
    scores = 3 * torch.randn(4, 9, dtype=torch.float64)
    history, lengths = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 4, 5], [8, 1, 2]]), torch.tensor([2, 1, 3, 3])
    target = torch.tensor([1, 4, 4, 2])  # among the items of the history, or not

    for weights in ((0.0, 0.0), (-0.5, -0.3), (0.4, 0.8), (-30.0, 0.0)):
        head.weights = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        loss = head.fit(scores, history, lengths, target)
        corrected = slow_head(scores, [[*filter(None, row)] for row in history.tolist()], *(10 * head.weights).unbind())
        expected = torch.nn.functional.cross_entropy(corrected, target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, head.weights), torch.autograd.grad(expected, head.weights))


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.01}])
def test_a_run_whose_gradient_is_clipped_learns_the_same_with_the_head(tmp_path: Any, clip: Any):
    settings = {**TINY, "epochs": 1, "hidden_size": 8, "clip_grad_norm": clip, "checkpoint_dir": str(tmp_path)}
    plain, head = (
        RunFolder(run("EMARec", "ml-100k", settings={**settings, "head": head}).folder).load_weights()
        for head in ("plain", "history")
    )
    assert head.pop("history_head.weights").abs().max() > 0
    assert all(torch.equal(head[name], each) for name, each in plain.items())


def test_in_one_pass_the_head_reads_no_more_items_than_the_batch_has(trained: Any):
    model, batch, _ = trained("SASRec", "sequence", "history")
    rows, target = samples_of(batch, model)
    assert len(target) > 1 and int(rows["item_length"].sum()) <= len(batch["item_id"])


def test_items_that_never_repeat_teach_negative_weights_and_repeated_ones_positive():
    for repeats, sign in ((False, -1), (True, 1)):
        head = HistoryHead()
        optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
        history = torch.tensor([[1, 2, 3], [2, 3, 4], [3, 4, 5]])
        target = torch.tensor([2, 3, 4]) if repeats else torch.tensor([6, 7, 8])
        for _ in range(50):
            optimizer.zero_grad()
            head.fit(torch.zeros(3, 9), history, torch.tensor([3, 3, 3]), target).backward()
            optimizer.step()
        assert sign * head.weights[0] > 0.1
