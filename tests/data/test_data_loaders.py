"""Loaders: RecBole's batches, reproducible negatives, a state to resume from, memory proportional to interactions."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from recbole.data import data_preparation as recbole_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender.bert4rec import BERT4Rec
from recbole.model.sequential_recommender.fearec import FEARec
from recbole.model.sequential_recommender.gru4rec import GRU4Rec
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation, prefixes
from recbole_sigma.data.loaders import BatchSampler, UniformNegatives
from recbole_sigma.errors import UserError

# RecBole sorts tensors with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


def loaders(config):
    return data_preparation(config, create_dataset(config))


def assert_same(ours, recboles):
    assert ours.columns == recboles.columns
    for field in recboles.columns:
        assert ours[field].dtype == recboles[field].dtype
        assert torch.equal(ours[field], recboles[field]), field


def assert_same_batches(ours, recboles):
    assert len(ours) == len(recboles)
    for batch, expected in zip(ours, recboles, strict=True):
        if isinstance(expected, tuple):
            assert batch[1] is expected[1] is None
            assert torch.equal(batch[2], expected[2]) and torch.equal(batch[3], expected[3])
            batch, expected = batch[0], expected[0]
        assert_same(batch, expected)


def test_batches_are_put_together_on_the_device(sample_config):
    """Meta tensors stand in for a GPU's: an operation that also met one of the CPU would fail."""
    config = sample_config("SIGMA", train_mode="prefix")
    expected = [next(iter(loader)) for loader in loaders(config)]
    config["device"] = torch.device("meta")
    for batch, same in zip(map(next, map(iter, loaders(config))), expected, strict=True):
        batch, same = (each[0] if isinstance(each, tuple) else each for each in (batch, same))
        assert batch.columns == same.columns
        for field in same.columns:
            assert batch[field].device.type == "meta"
            assert (batch[field].shape, batch[field].dtype) == (same[field].shape, same[field].dtype)


def test_batches_put_together_on_a_device_hold_the_same(sample_config, monkeypatch):
    config = sample_config("SIGMA")
    expected = [list(loader) for loader in loaders(config)]
    monkeypatch.setattr(prefixes, "positions", prefixes._positions_on_device)
    for loader, batches in zip(loaders(config), expected, strict=True):
        assert_same_batches(list(loader), batches)


def test_batches_stay_on_the_cpu_if_negatives_or_masks_are_drawn_there(sample_config):
    for model, settings in (("SIGMA", {"loss_type": "BPR"}), (GRU4Rec, {}), ("BERT4Rec", {}), ("SIGMA", {"worker": 1})):
        config = sample_config(model, train_mode="prefix", **settings)
        config["device"] = torch.device("meta")
        train = loaders(config)[0]
        assert train.dataset.inter_feat.device.type == "cpu"


def test_recbole_order_is_recbole_s_own_sample_by_sample_on_ml_100k():
    given = {
        "use_gpu": False, "time_order": "recbole", "normalize_all": False, "train_batch_size": 5000,
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    }  # fmt: skip
    ours = loaders(Config(GRU4Rec, "ml-100k", settings=given))
    config = Config(GRU4Rec, "ml-100k", settings=given)
    recboles = recbole_preparation(config, SequentialDataset(config))
    for part, expected in zip(ours, recboles, strict=True):
        assert isinstance(part, type(expected))
        assert_same_batches(part, expected)  # training: the same random batches
    assert_same_batches(ours[0], recboles[0])  # and in the next epoch


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only"])
@pytest.mark.parametrize("items", ["[0,inf)", "[2,inf)"])
def test_short_histories_filters_and_splits_are_recbole_s(sample_config, mode, items):
    given = {
        "time_order": "recbole", "MAX_ITEM_LIST_LENGTH": 3, "item_inter_num_interval": items, "train_batch_size": 2,
        "eval_args": {"split": {"LS": mode}},
    }  # fmt: skip
    ours, config = loaders(sample_config(**given)), sample_config(**given)
    dataset = SequentialDataset(config)
    recboles = recbole_preparation(config, dataset)
    assert ours[0].dataset.field2id_token["item_id"].tolist() == dataset.field2id_token["item_id"].tolist()
    for part, expected in zip(ours, recboles, strict=True):
        assert len(part.dataset) == len(expected.dataset)
        for _ in range(3):
            assert_same_batches(part, expected)


def test_inter_feat_answers_like_recbole_s(sample_config):
    config = sample_config(time_order="recbole")
    recboles = SequentialDataset(config).build()[0]
    ours = create_dataset(sample_config(time_order="recbole")).build()[0]
    assert list(ours.inter_feat) == list(recboles.inter_feat)
    assert len(ours) == len(recboles) == ours.item_counter.total() == recboles.item_counter.total()
    assert ours.item_counter == recboles.item_counter
    for field in recboles.inter_feat.columns:
        expected = recboles.inter_feat[field]
        assert torch.equal(torch.as_tensor(ours.inter_feat[field][:]), expected)
        assert torch.equal(ours.inter_feat[field][2], expected[2])
        assert torch.equal(ours.inter_feat[field][[4, 0]], expected[[4, 0]])
    assert_same(ours.inter_feat[1:3], recboles.inter_feat[1:3])
    assert (ours.inter_matrix() != recboles.inter_matrix()).nnz == 0
    assert ours.field2seqlen == recboles.field2seqlen
    assert set(ours.fields()) == set(recboles.fields())


@pytest.mark.parametrize("model", [GRU4Rec, SASRec, BERT4Rec, FEARec])
def test_recbole_s_own_models_train_and_evaluate(write_inter, read_tiny, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    write_inter([(f"u{n % 40}", f"i{n * n % 31}", n) for n in range(400)])
    small = {"hidden_size": 8, "embedding_size": 8, "inner_size": 8, "n_heads": 2}
    known = {key: value for key, value in small.items() if Config(model, "ml-100k")[key] is not None}
    dataset = read_tiny(model, epochs=1, MAX_ITEM_LIST_LENGTH=20, train_batch_size=100, **known)
    train, valid, test = data_preparation(dataset.config, dataset)
    trainer = Trainer(dataset.config, model(dataset.config, train.dataset))
    _, valid_result = trainer.fit(train, valid, saved=False, show_progress=False)
    test_result = trainer.evaluate(test, load_best_model=False)
    assert all(0 <= result["ndcg@10"] <= 1 for result in (valid_result, test_result))


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (9, 3), (1, 4), (0, 4)])
def test_an_epoch_has_every_row_once(rows, size):
    sampler = BatchSampler(rows, size, torch.Generator().manual_seed(1))
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(rows))


def batches_of(loader):
    return [{field: batch[field].tolist() for field in batch.columns} for batch in loader]


def test_the_same_seed_gives_the_same_epochs_negatives_included(sample_config):
    def epochs(seed):
        train = loaders(sample_config(seed=seed, train_batch_size=2, loss_type="BPR"))[0]
        return [batches_of(train) for _ in range(2)]

    first, second = epochs(1)
    assert [first, second] == epochs(1)
    assert first != second
    assert [first, second] != epochs(2)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_loader_continues_from_the_state_of_another(sample_config, done):
    first, second = (loaders(sample_config(train_batch_size=2, loss_type="BPR"))[0] for _ in range(2))
    for _ in range(done):
        batches_of(first)
    state = first.state()
    second.load_state({"epoch": state["epoch"], "generator": state["generator"].clone()})
    assert batches_of(first) == batches_of(second)


def test_worker_processes_do_not_change_the_batches(sample_config):
    given = {"train_batch_size": 2, "loss_type": "BPR"}
    alone, helped = (loaders(sample_config(worker=worker, **given))[0] for worker in (0, 2))
    assert [batches_of(alone) for _ in range(2)] == [batches_of(helped) for _ in range(2)]


def test_negatives_are_drawn_evenly_from_all_items_but_the_positive():
    sampler = UniformNegatives(6)
    sampler.seed(0)
    for positive in range(1, 6):
        drawn = sampler.sample_by_user_ids(np.zeros(2000), np.full(2000, positive), 2).numpy()
        counts = np.bincount(drawn, minlength=6)
        assert counts[0] == counts[positive] == 0
        others = counts[[item for item in range(1, 6) if item != positive]]
        assert abs(others - 1000).max() < 150  # 5 standard deviations


def test_negatives_are_where_recbole_expects_them(sample_config):
    three = {"distribution": "uniform", "sample_num": 3, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    train = loaders(sample_config(train_batch_size=10, loss_type="BPR", train_neg_sample_args=three))[0]
    for batch in train:
        samples = len(batch) // 3
        assert torch.equal(batch["item_id"], batch["item_id"][:samples].repeat(3))
        assert (batch["neg_item_id"] != batch["item_id"]).all()
        assert batch["neg_item_id"].min() >= 1


def test_recbole_s_sampling_by_popularity_still_works(sample_config):
    config = sample_config(loss_type="BPR", train_neg_sample_args={"distribution": "popularity"})
    train = loaders(config)[0]
    assert all((batch["neg_item_id"] != batch["item_id"]).all() for batch in train)


def test_one_item_leaves_no_negative(write_inter, read_tiny):
    write_inter([("u", "a", time) for time in range(4)])
    dataset = read_tiny(loss_type="BPR")
    dataset.config["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
    with pytest.raises(UserError, match=r"train_neg_sample_args: .* one item"):
        data_preparation(dataset.config, dataset)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from recbole.model.sequential_recommender.gru4rec import GRU4Rec
from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation, prefixes

def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3

GRU4Rec.accepts_any_length = True
config = Config(GRU4Rec, "tiny", settings={"data_path": sys.argv[1], "use_gpu": False, "MAX_ITEM_LIST_LENGTH": 1000})
before = peak_mb()
train, valid, test = data_preparation(config, create_dataset(config))
samples = sum(len(batch) for batch in train) + sum(len(batch[0]) for part in (valid, test) for batch in part)
print(samples, peak_mb() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_interactions_not_of_padded_samples(tmp_path, write_inter):
    n, users = 300_000, 15_000
    random = np.random.default_rng(0)
    rows = np.stack([np.tile(np.arange(users), n // users), random.integers(0, 3000, n), random.permutation(n)], axis=1)
    write_inter(rows.tolist())
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    samples, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    assert int(samples) == n - users
    assert float(grown) < 120  # samples x 1000 slots x 8 bytes would be 2,280
