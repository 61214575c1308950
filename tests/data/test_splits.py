"""Splits against RecBole's own SequentialDataset, and by hand where RecBole has none."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender.gru4rec import GRU4Rec

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset
from recbole_sigma.data.preparation import load
from tests.helpers.models import refused

FIELDS = ("user_id", "item_id", "item_length", "item_id_list")
ROWS = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcd"), st.integers(0, 9)), min_size=1, max_size=60
).filter(lambda rows: max(Counter(row[0] for row in rows).values()) >= 3)
RATIO = st.sampled_from([0, 0.1, 0.2, 0.25, 0.5, 1 / 3, 1, 3])
SPLITS = st.one_of(
    st.builds(lambda mode: {"LS": mode}, st.sampled_from(["valid_and_test", "valid_only", "test_only"])),
    st.builds(lambda *ratios: {"RS": list(ratios)}, RATIO.filter(bool), RATIO, RATIO),
)
SLOW_FIXTURES = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@functools.cache
def config_of(data_path: str) -> Config:
    """A Config that tests change, since making one takes longer than reading a small data set."""
    given = {"data_path": data_path, "use_gpu": False, "MAX_ITEM_LIST_LENGTH": 5, "load_col": None}
    return Config(GRU4Rec, "tiny", settings=given)


def samples(split: Any) -> list[list[Any]]:
    """User, target, length and history of each sample, as numbers."""
    return [split.inter_feat[field][:].tolist() for field in FIELDS] if len(split) else [[]] * len(FIELDS)


def readable(split: Any) -> list[str]:
    """Samples such as `u: ab>c` in ids of the files, whose users and items are letters."""
    user, item = split.field2id_token["user_id"], split.field2id_token["item_id"]
    rows = zip(*samples(split), strict=True)
    return [f"{user[u]}: {''.join(item[i] for i in items[:n])}>{item[t]}" for u, t, n, items in rows]


@settings(max_examples=100, **SLOW_FIXTURES)
@given(ROWS, SPLITS, st.sampled_from(["user", "none", None]), st.sampled_from(["exact", "recbole"]))
def test_the_samples_of_each_split_are_recboles(write_inter, tmp_path, rows, split, group_by, order):
    write_inter(rows)
    config = config_of(str(tmp_path))
    config["time_order"] = order
    config["eval_args"] = {**config["eval_args"], "split": split, "group_by": group_by}
    ours, theirs = create_dataset(config).build(), SequentialDataset(config).build()
    for part, expected in zip(ours, theirs, strict=True):
        assert samples(part) == samples(expected)


_ITEMS = {"1": range(1, 9), "2": range(4, 9), "3": range(4, 7), "4": range(3, 5)}
SEQUENCES = [(user, str(item), item) for user, items in _ITEMS.items() for item in items]


def test_recboles_cases_of_leave_one_out_pass(write_inter, tmp_path):
    write_inter(SEQUENCES)
    config = Config("GRU4Rec", "tiny", settings={"data_path": str(tmp_path), "load_col": None})
    train, valid, test = create_dataset(config).build()
    assert train.inter_feat[train.uid_field].tolist() == [1, 1, 1, 1, 1, 4, 2, 2, 3]
    lists = train.inter_feat[train.item_id_list_field]
    assert lists[:, :3].numpy().tolist() == [
        [1, 0, 0], [1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 0, 0], [4, 0, 0], [4, 5, 0], [4, 0, 0]
    ]  # fmt: skip
    assert lists[4, :5].tolist() == lists[[4, 0], :5][0].tolist() == lists[..., :5][4].tolist() == [1, 2, 3, 4, 5]
    assert lists[2:4, 1].tolist() == lists[np.array([2, 3]), [1, 1]].tolist() == [2, 2]
    assert train.inter_feat[train.item_list_length_field].tolist() == [1, 2, 3, 4, 5, 1, 1, 2, 1]
    assert valid.inter_feat[valid.item_id_list_field][:, :6].tolist() == [[1, 2, 3, 4, 5, 6], [4, 5, 6, 0, 0, 0]]
    assert test.inter_feat[test.iid_field].tolist() == [8, 8, 6]
    pairs = [list(zip(*part.inter_matrix().nonzero(), strict=True)) for part in (train, valid, test)]
    assert len(pairs[0]) == 6 + 3 + 2 + 2
    assert pairs[1:] == [[(1, 7), (2, 7)], [(1, 8), (2, 8), (3, 6)]]


def test_recboles_case_of_ratios_passes(write_inter, read_tiny):
    write_inter(SEQUENCES)
    parts = read_tiny(GRU4Rec, eval_args={"split": {"RS": [0.3, 0.3, 0.4]}, "order": "TO"}).build()
    targets = [list(zip(*samples(part)[:3], strict=True)) for part in parts]
    assert targets == [
        [(1, 2, 1), (1, 3, 2), (1, 4, 3), (4, 4, 1), (2, 5, 1), (2, 6, 2), (3, 5, 1)],
        [(1, 5, 4), (1, 6, 5), (2, 7, 3)],
        [(1, 7, 6), (1, 8, 7), (2, 8, 4), (3, 6, 2)],
    ]


@settings(max_examples=60, **SLOW_FIXTURES)
@given(rows=ROWS, times=st.lists(st.integers(1, 9), min_size=1, max_size=2, unique=True).map(sorted))
def test_nothing_at_or_after_a_cut_off_is_in_training(write_inter, tmp_path, rows, times):
    write_inter(rows)
    config = config_of(str(tmp_path))
    config["eval_args"] = {**config["eval_args"], "split": {"time": times}}
    dataset = create_dataset(config)
    everything = Counter((user, time) for user, _, time in rows)
    bounds = [-np.inf, times[0], times[-1], np.inf]
    for part, low, high in zip(dataset.build(), bounds[:-1], bounds[1:], strict=True):
        batch = part[np.arange(len(part))]
        target = batch["timestamp"].numpy()
        assert ((low <= target) & (target < high)).all()
        assert (batch["timestamp_list"].numpy() <= target[:, None]).all()
        users = Counter(dataset.field2id_token["user_id"][batch["user_id"].numpy()].tolist())
        for name in "uvwxyz":  # each interaction is a target, but the first one of a user
            own = sorted(time for user, time in everything.elements() if user == name)[1:]
            assert users[name] == sum(low <= time < high for time in own)


def test_a_history_before_the_cut_off_may_hold_everything_before_the_target(write_inter, read_tiny):
    write_inter([("u", item, time) for time, item in enumerate("abcde", 2**62)])
    train, valid, test = read_tiny(eval_args={"split": {"time": float(2**62)}}).build()
    assert not len(train) and not len(valid) and readable(test)[-1] == "u: abcd>e"
    write_inter([("u", item, time) for time, item in enumerate("abcde")])
    parts = read_tiny(eval_args={"split": {"time": [2, 4]}}).build()
    assert list(map(readable, parts)) == [["u: a>b"], ["u: ab>c", "u: abc>d"], ["u: abcd>e"]]
    parts = read_tiny(eval_args={"split": {"time": 3.5}}).build()
    assert [len(part) for part in parts] == [3, 0, 1]


HEADER = "user_id:token item_id:token timestamp:float"
FILES = {"benchmark_filename": ["train", "valid", "test"]}


def test_files_that_are_split_beforehand_are_read_as_they_are_split(tmp_path, read_tiny):
    lines = {"train": "u a 5\nu b 6\nv c 1", "valid": "u c 3\nv a 4", "test": "v b 9\nw a 1\nw b 2"}
    for name, text in lines.items():
        (tmp_path / "tiny").mkdir(exist_ok=True)
        content = f"{HEADER}\n{text}\n".replace(" ", "\t")
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text(content)
    dataset = read_tiny(**FILES)
    # A later file's interaction follows those of an earlier file, whatever its time: training sees none of test.
    assert list(map(readable, dataset.build())) == [["u: a>b"], ["v: c>a", "u: ab>c"], ["w: a>b", "v: ca>b"]]
    before = dataset.checksum()
    (tmp_path / "tiny" / "tiny.test.inter").write_text(f"{HEADER}\nv b 9\n".replace(" ", "\t"))
    assert read_tiny(**FILES).checksum() != before and len(load(read_tiny(**FILES).config).test.dataset) == 1


LISTED = {
    "train": [
        "1 2 2 1 1",
        "1 3 3 1_2 1_2",
        "1 4 4 1_2_3 1_2_3",
        "4 4 4 3 3",
        "2 5 5 4 4",
        "2 6 6 4_5 4_5",
        "3 5 5 4 4",
    ],
    "valid": ["1 5 5 1_2_3_4 1_2_3_4", "2 7 7 4_5_6 4_5_6"],
    "test": ["1 8 8 2_3_4_5_6_7 2_3_4_5_6_7", "3 6 6 4_5 4_5"],
}  # fmt: skip


def write_listed(tmp_path: Path, columns: int = 5, **changed: list[str]) -> None:
    header = [*HEADER.split(" "), "item_id_list:token_seq", "timestamp_list:float_seq"][:columns]
    for name, lines in {**LISTED, **changed}.items():
        (tmp_path / "tiny").mkdir(exist_ok=True)
        cells = ["\t".join(line.split(" ")[:columns]).replace("_", " ") for line in lines]
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text("\n".join(["\t".join(header), *cells]) + "\n")


@pytest.mark.parametrize("alias", [["item_id_list"], None])
def test_samples_with_listed_histories_are_recboles(tmp_path, alias):
    write_listed(tmp_path)
    given = {"data_path": str(tmp_path), "use_gpu": False, "load_col": None, **FILES, "MAX_ITEM_LIST_LENGTH": 6}
    ours = create_dataset(Config(GRU4Rec, "tiny", settings={**given, "alias_of_item_id": alias}))
    recboles = SequentialDataset(Config(GRU4Rec, "tiny", settings={**given, "alias_of_item_id": ["item_id_list"]}))
    for part, expected in zip(ours.build(), recboles.build(), strict=True):
        assert samples(part) == samples(expected)
        assert torch.equal(part.inter_feat["timestamp_list"][:], expected.inter_feat["timestamp_list"])
    assert ours.statistics()["interactions"] == 11 and ours.statistics()["users"] == 4
    write_listed(tmp_path, columns=4)
    assert len(load(Config("SIGMA", "tiny", settings=given)).train.dataset) == 7


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (["1 b a", "1 c a_b", "1 d a_b_c", "2 c a"], "aabccd"),  # all prefixes
        (["1 d a_b_c", "2 c a", "1 c a_b", "1 b a"], "aabccd"),  # in another order
        (["1 c a_b", "1 d b_c", "1 e c_d"], "abcde"),  # the last two items of each history
        (["1 d a_b_c", "2 c a_b"], "aabbccd"),  # one sample per user
        (["1 d a_b", "1 d c_b_a"], "aabbcdd"),  # two sessions
        (["1 a a_a"], "aaa"),
    ],
)
def test_an_interaction_that_several_listed_histories_show_counts_once(tmp_path, train, expected):
    header = ["user_id:token", "item_id:token", "item_id_list:token_seq"]
    (tmp_path / "tiny").mkdir()
    for name, lines in {"train": train, "valid": ["1 e a"], "test": ["1 e b"]}.items():
        cells = ["\t".join(line.split()).replace("_", " ") for line in lines]
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text("\n".join(["\t".join(header), *cells]) + "\n")
    given = {"data_path": str(tmp_path), "use_gpu": False, "train_mode": "prefix", "MAX_ITEM_LIST_LENGTH": 2, **FILES}
    samples = load(Config("SIGMA", "tiny", settings=given)).train.dataset.inter_feat
    items = samples.flat.columns["item_id"][samples.interactions()]
    names = load(Config("SIGMA", "tiny", settings=given)).train.dataset.field2id_token["item_id"]
    assert "".join(sorted(names[item] for item in items)) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"benchmark_filename": ["train", "valid"]}, ["benchmark_filename", "[train, valid, test]"]),
        ({"benchmark_filename": ["train", "valid", "tst"]}, ["tiny.tst.inter", "benchmark_filename"]),
        ({**FILES, "mask_seen": True, "eval_args": {"mode": "uni20"}}, ["mask_seen", "uni20"]),
        ({**FILES, "user_inter_num_interval": "[2,inf)"}, ["benchmark_filename", "user_inter_num_interval"]),
        ({"eval_args": {"split": {"time": [3, 2]}}}, ["eval_args", "[3, 2]", "{time: [T1, T2]}"]),
        ({"eval_args": {"split": {"RS": [0, 1, 1]}}}, ["eval_args", "RS"]),
        ({"eval_args": {"split": {"RS": [0.8, 0.2]}}}, ["eval_args", "[0.8, 0.1, 0.1]"]),
        ({"eval_args": {"split": {"LS": "valid"}}}, ["eval_args", "valid_and_test"]),
        ({"eval_args": {"split": {"LS": "valid_only", "RS": [1, 1, 1]}}}, ["eval_args"]),
        ({"eval_args": {"split": {"RS": [1, 1, 1]}, "order": "RO"}}, ["eval_args", "TO"]),
        ({"eval_args": {"group_by": "item"}}, ["eval_args", "user or none"]),
        ({"eval_args": {"split": {"time": [4, 100]}}}, ["test split is empty", "eval_args", "100"]),
        *(
            ({"train_mode": mode, "eval_args": {"split": {"time": [-1, 3]}}}, ["training split is empty", "eval_args"])
            for mode in ("prefix", "sequence")
        ),
        ({"eval_args": {"mode": "labeled"}}, ["eval_args", "uni100"]),
    ],
)
def test_a_split_that_cannot_work_is_named(tmp_path, write_inter, read_tiny, change, named):
    write_inter(SEQUENCES)
    write_listed(tmp_path)
    with refused(*named):
        load(read_tiny(**change).config)


def test_a_row_without_a_history_or_with_lists_of_two_lengths_is_refused(tmp_path, read_tiny):
    write_listed(tmp_path, valid=["1 5 5 1_2 1_2", "2 7 7  "])
    with refused("tiny.valid.inter:3", "item_id_list is empty"):
        read_tiny(**FILES)
    write_listed(tmp_path, valid=["1 5 5 1_2 1", "2 7 7 4 4"])
    with refused("timestamp_list", "item_id_list", "row 8"):
        read_tiny(**FILES)
