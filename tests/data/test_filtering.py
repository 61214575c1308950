"""RecBole's k-core settings give exactly RecBole's result, and loading takes data from wherever users keep it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset

from recbole_sigma import cli
from recbole_sigma.data import SequenceDataset
from recbole_sigma.data.arrays import Storage

INTERVALS = [None, "[0,inf)", "[3,inf)", "(2,8]", "[1,3];[5,9]", "[5,9];[1,3]", "[0,5]", "(0,4)", "[2,2]", "[6,2]"]
IDS = [str(number) for number in range(9)]
SEVERAL = st.lists(st.sampled_from(IDS), unique=True)


def unfiltered(rows: list[tuple[str, str]], users: Any, items: Any, intervals: dict[str, Any]) -> SequenceDataset:
    """A data set as it is before this filter; `users` and `items` have a line in the .user and .item file, or None."""
    dataset = object.__new__(SequenceDataset)
    dataset.config, dataset.logger = intervals, logging.getLogger("silent")
    dataset.logger.disabled = True
    dataset._storage = Storage()
    dataset.uid_field, dataset.iid_field = "user_id", "item_id"
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"]).astype(pd.CategoricalDtype(IDS))
    dataset.inter_feat = frame.iloc[::-1].copy()
    for name, ids in (("user", users), ("item", items)):
        feat = None if ids is None else pd.DataFrame({f"{name}_id": pd.Categorical(ids)})
        setattr(dataset, f"{name}_feat", feat)
    return dataset


@given(
    rows=st.lists(st.tuples(st.sampled_from(IDS[:7]), st.sampled_from(IDS[:6])), max_size=50),
    users=st.none() | SEVERAL,
    items=st.none() | SEVERAL,
    intervals=st.tuples(*[st.sampled_from(INTERVALS)] * 2),
)
def test_filtering_by_number_of_interactions_is_recboles(rows: Any, users: Any, items: Any, intervals: Any) -> None:
    settings = dict(zip(("user_inter_num_interval", "item_inter_num_interval"), intervals, strict=True))
    ours, theirs = (unfiltered(rows, users, items, settings) for _ in range(2))
    ours._filter_by_inter_num()
    SequentialDataset._filter_by_inter_num(theirs)
    for name in ("inter_feat", "user_feat", "item_feat"):
        if getattr(theirs, name) is not None:
            pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1),
    scale=st.sampled_from([1, 2**40, 2**61]),  # with the last, user and time do not fit into one number
    kind=st.sampled_from([np.int64, np.float64]),
)
def test_the_order_is_by_user_then_time_then_row(rows: list[tuple[int, int]], scale: int, kind: Any) -> None:
    users, times = (np.array(column) for column in zip(*rows, strict=True))
    expected = sorted(range(len(rows)), key=lambda row: rows[row])
    user_start = np.append(0, np.cumsum(np.bincount(users)))
    assert Storage().order(users, user_start, [(times * scale).astype(kind)]).tolist() == expected


@pytest.mark.parametrize("place", ["relative", "symbolic link", "read-only", "not ASCII"])
def test_a_data_set_may_be_kept_anywhere(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("Ünï cödé 数据" if place == "not ASCII" else "data") / "mine"
    folder.mkdir(parents=True)
    rows = [f"ü{user}\t数{(user + step) % 6}\t{step}\n" for user in range(6) for step in range(5)]
    text = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(rows)
    (folder / "mine.inter").write_text(text, encoding="utf-8")
    data_path = folder.parent
    if place == "symbolic link":
        data_path = tmp_path / "links"
        data_path.mkdir()
        (data_path / "mine").symlink_to(folder)
    if place == "relative":
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        data_path = Path("../data")
    if place == "read-only":
        folder.chmod(0o555)
    before = [path.name for path in folder.iterdir()]
    small = ["--epochs=1", "--hidden_size=8", "--MAX_ITEM_LIST_LENGTH=5", "--use_gpu=False"]
    arguments = ["train", "--model=GRU4Rec", "--dataset=mine", f"--data_path={data_path}", *small]
    assert cli.main([*arguments, f"--checkpoint_dir={tmp_path / 'runs'}", "--user_inter_num_interval=[3,inf)"]) == 0
    assert [path.name for path in folder.iterdir()] == before
