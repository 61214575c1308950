"""Order, prefixes and splits of SequenceDataset, against hand-checked rows and a slow plain version."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import recbole
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.model.sequential_recommender.dien import DIEN
from recbole.model.sequential_recommender.gru4rec import GRU4Rec

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset
from recbole_sigma.data.preparation import load
from tests.helpers.models import refused

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"


def readable(split):
    """All samples of a split as (user, [history], target) in raw ids."""
    if not len(split):
        return []
    batch = split[np.arange(len(split))]
    user, item = split.field2id_token["user_id"], split.field2id_token["item_id"]
    rows = zip(batch["user_id"], batch["item_id_list"], batch["item_length"], batch["item_id"], strict=True)
    return [(str(user[u]), [str(item[i]) for i in items[:n]], str(item[t])) for u, items, n, t in rows]


def test_the_sample_is_split_as_by_hand(sample_config):
    train, valid, test = map(readable, create_dataset(sample_config()).build())
    assert train == [
        ("ann", ["bread"], "apple"),
        ("ann", ["bread", "apple"], "tea"),
        ("bob", ["milk"], "bread"),
        ("cid", ["jam"], "tea"),
        ("fay", ["tea"], "milk"),
    ]
    assert valid == [("ann", ["bread", "apple", "tea"], "milk"), ("bob", ["milk", "bread"], "tea")]
    assert test == [
        ("ann", ["bread", "apple", "tea", "milk"], "jam"),  # milk and jam at the same time: in the file's order
        ("bob", ["milk", "bread", "tea"], "jam"),
        ("fay", ["tea", "milk"], "jam"),
    ]


def test_history_lengths_are_those_before_truncation(sample_config):
    _, _, test = create_dataset(sample_config(MAX_ITEM_LIST_LENGTH=2)).build()
    assert test.history_lengths(np.arange(3)).tolist() == [4, 3, 2]
    assert test[np.arange(3)]["item_length"].tolist() == [2, 2, 2]
    assert readable(test)[0] == ("ann", ["tea", "milk"], "jam")


def test_statistics_and_checksum_are_those_of_the_file(sample_config):
    dataset = create_dataset(sample_config())
    expected = {"users": 5, "items": 5, "interactions": 15, "mean_length": 3.0, "sparsity": 1 - 15 / 25}
    assert dataset.statistics() == expected
    assert (dataset.inter_num, dataset.avg_actions_of_users, dataset.avg_actions_of_items) == (15, 3.0, 3.0)
    file = Path(__file__).parents[2] / "dataset" / "sample" / "sample.inter"
    assert dataset.checksum() == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(("changed", "others"), [({}, 0), ({"time_order": "recbole", "normalize_all": False}, 149)])
def test_the_943_test_items_of_ml_100k_are_those_of_the_raw_integers_but_149_in_recbole_order(changed, others):
    last = {}
    for line in ML_100K.read_text().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        last[user] = max((int(time), item), last.get(user, (0, None)), key=lambda each: each[0])
    inter = {"inter": ["user_id", "item_id", "timestamp"]}
    dataset = create_dataset(Config(GRU4Rec, "ml-100k", settings={"use_gpu": False, "load_col": inter, **changed}))
    found = {user: target for user, _, target in readable(dataset.build()[2])}
    assert len(found) == len(last) == 943
    assert sum(found[user] != item for user, (_, item) in last.items()) == others


@pytest.mark.parametrize("late", [1_700_000_000_000_000_001, 2**62 + 1, 1.5, -3.25])
def test_no_digit_of_the_time_is_lost(write_inter, read_tiny, late):
    earlier = late - 1 if isinstance(late, int) else np.nextafter(late, -np.inf)
    write_inter([("u", "last", late), ("u", "middle", earlier), ("u", "first", earlier - 1)])
    assert readable(read_tiny().build()[2]) == [("u", ["first", "middle"], "last")]


def test_tokens_stay_text(write_inter, read_tiny):
    write_inter([("1", "7", 1), ("1", "007", 2), ("01", "NA", 3), ("1", '"7', 4), ("01", " 7", 5)])
    dataset = read_tiny()
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "7", "007", "NA", '"7', " 7"]
    assert dataset.field2id_token["user_id"].tolist() == ["[PAD]", "1", "01"]


def test_lines_may_end_as_on_windows_and_be_empty(tmp_path, write_inter, read_tiny):
    file = write_inter([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\r\n").rstrip())
    assert readable(read_tiny().build()[2]) == [("u", ["a", "b"], "c")]


@pytest.mark.parametrize(("keep", "history"), [("first", ["a", "b"]), ("last", ["b", "a"])])
def test_duplicates_are_removed_in_exact_order(write_inter, read_tiny, keep, history):
    write_inter([("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "c", 2)])
    assert readable(read_tiny(rm_dup_inter=keep).build()[2]) == [("u", history, "c")]


def slowly(rows, max_length, mode):
    """Train, valid and test samples of (user, item, time) rows, one at a time, in RecBole's order."""
    ids = {user: number for number, user in enumerate(dict.fromkeys(user for user, _, _ in rows))}
    histories = defaultdict(list)
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        histories[user].append((item, time))
    samples = []
    for user in ids:
        items = [item for item, _ in histories[user]]
        for k in range(1, len(items)):
            samples.append((histories[user][k][1], user, (user, items[max(0, k - max_length) : k], items[k])))
    grouped = defaultdict(list)
    for _, user, sample in sorted(samples, key=lambda each: each[0]):
        grouped[user].append(sample)
    train, valid, test = [], [], []
    for own in grouped.values():
        held_out = own[max(1, len(own) - (2 if mode == "valid_and_test" else 1)) :]
        train += own[: len(own) - len(held_out)]
        test += held_out[-1:] if mode != "valid_only" else []
        valid += held_out[-1:] if mode == "valid_only" else held_out[:-1]
    return [train, valid, test]


ROWS = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcd"), st.integers(0, 6)), min_size=1, max_size=40
).filter(lambda rows: max(sum(user == row[0] for row in rows) for user in "uvwxyz") >= 3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, max_length=st.integers(1, 6), mode=st.sampled_from(["valid_and_test", "valid_only", "test_only"]))
def test_prefixes_are_those_of_the_slow_version(write_inter, read_tiny, rows, max_length, mode):
    write_inter(rows)
    dataset = read_tiny(MAX_ITEM_LIST_LENGTH=max_length, eval_args={"split": {"LS": mode}, "order": "TO"})
    assert [readable(part) for part in dataset.build()] == slowly(rows, max_length, mode)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, data=st.data())
def test_a_batch_of_any_length_is_the_padded_one_cut_to_its_longest_row(write_inter, read_tiny, rows, data):
    write_inter(rows)
    short, padded = read_tiny(MAX_ITEM_LIST_LENGTH=7), read_tiny(GRU4Rec, MAX_ITEM_LIST_LENGTH=7)
    index = np.array(data.draw(st.lists(st.integers(0, len(short.inter_feat) - 1), min_size=1, max_size=8)))
    ours, full = short[index], padded[index]
    assert ours.columns == ["user_id", "item_id", "item_length", "item_id_list"]
    assert full["item_id_list"].shape[1] == full["timestamp_list"].shape[1] == 7
    width = int(full["item_length"].max())
    assert ours["item_id_list"].shape[1] == width
    assert torch.equal(ours["item_id_list"], full["item_id_list"][:, :width])
    assert not full["item_id_list"][:, width:].any()
    for field in ("user_id", "item_id", "item_length"):
        assert torch.equal(ours[field], full[field])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"eval_args": {"order": "RO"}}, ["eval_args", "'RO'", "TO"]),
        ({"benchmark_filename": ["train", "test"]}, ["benchmark_filename"]),
        ({"time_order": "recbol"}, ["time_order", "'recbol'", "recbole"]),
        ({"TIME_FIELD": None}, ["TIME_FIELD", ".inter"]),
        ({"load_col": {"inter": ["user_id", "item_id"]}}, ["load_col", "'timestamp'", "TIME_FIELD"]),
        ({"load_col": {"inter": ["user_id"]}, "unload_col": {"inter": ["rating"]}}, ["load_col", "unload_col"]),
        ({"user_inter_num_interval": "[9,inf)"}, ["no interaction", "user_inter_num_interval"]),
    ],
)
def test_a_setting_that_cannot_work_is_named(sample_config, changed, named):
    with refused(*named):
        load(sample_config(**changed))


def test_models_with_a_data_set_of_their_own_are_refused(sample_config):
    with refused("DIEN"):
        create_dataset(sample_config(DIEN, metrics=["Hit"], valid_metric="Hit@10"))


def test_without_a_user_of_four_interactions_the_validation_split_is_empty(write_inter, read_tiny):
    write_inter([("u", item, time) for time, item in enumerate("abc")])
    with refused("tiny: the validation split is empty", "4 or more"):
        load(read_tiny().config)


def test_the_shards_of_the_processes_are_the_batches_of_one(sample_config):
    one = load(sample_config(train_batch_size=2))
    assert one.dataset.statistics()["users"] == 5
    for name in ("train", "valid", "test"):
        shards = [getattr(load(sample_config(train_batch_size=2), rank, 3), name) for rank in range(3)]
        for batch, *parts in zip(getattr(one, name), *shards, strict=True):
            batch, *parts = (each[0] if isinstance(each, tuple) else each for each in (batch, *parts) if each)
            assert torch.equal(torch.cat([part["item_id_list"] for part in parts]), batch["item_id_list"])
