"""A table in memory is a data set as good as a file."""

import uuid
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from recbole_sigma import Config, UserError, resume, run
from recbole_sigma.data import SequenceDataset

FRAME = pd.DataFrame(
    {
        "User ID": [user for user in range(5) for _ in range(5)],
        "movie": [f"é {(user + step) % 7}" for user in range(5) for step in range(5)],
        "date": pd.to_datetime([100 - step for _ in range(5) for step in range(5)], unit="D"),
    }
).rename(columns={"movie": "item"})
SMALL = {"use_gpu": False, "epochs": 1, "hidden_size": 8, "MAX_ITEM_LIST_LENGTH": 5}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {**SMALL, "checkpoint_dir": str(tmp_path / "runs")}


def test_a_run_on_a_frame_can_be_resumed_by_its_directory(settings: dict[str, Any]) -> None:
    result = run("GRU4Rec", FRAME, settings=settings)
    assert resume(result.folder).test == result.test


def test_equal_frames_of_any_library_are_one_data_set_and_others_are_not(settings: dict[str, Any]) -> None:
    frames = [FRAME, pl.from_pandas(FRAME), pl.from_pandas(FRAME).lazy(), pl.from_pandas(FRAME).to_arrow()]
    frames += [FRAME.set_index("User ID"), FRAME.astype({"item": "category"})]
    data = [SequenceDataset(Config("GRU4Rec", frame, settings=settings)) for frame in frames]
    assert {each.checksum() for each in data} == {data[0].checksum()}
    assert {each.dataset_name for each in data} == {data[0].dataset_name}
    assert data[0].statistics()["interactions"] == 25
    other = Config("GRU4Rec", FRAME.iloc[::-1], settings=settings)
    assert other.dataset != data[0].dataset_name
    assert len(list(Path(settings["checkpoint_dir"], "data").iterdir())) == 2


def test_uuids_and_times_in_nanoseconds_as_floats_are_read(settings: dict[str, Any]) -> None:
    seconds = [100 - step for _ in range(5) for step in range(5)]
    frame = FRAME.assign(item=[uuid.uuid5(uuid.NAMESPACE_DNS, item) for item in FRAME["item"]])
    frame["date"] = [1.7e18 + 1e9 * second for second in seconds]
    data = SequenceDataset(Config("GRU4Rec", frame, settings=settings))
    assert {*data.field2id_token["item_id"][1:]} == {*map(str, frame["item"])}
    newest = data.inter_feat["item_id"][data.inter_feat["user_id"] == 1][-1]
    assert data.field2id_token["item_id"][newest] == str(frame["item"][0])


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (3, ["dataset", "int"]),
        (FRAME.drop(columns="item"), ["items", "item_id"]),
        (FRAME.assign(item=None), ["item is missing"]),
        (FRAME.assign(item=[[1]] * 25), ["'item'", "list"]),
        (FRAME.iloc[:0], ["no interaction"]),
        (pd.concat([FRAME, FRAME[["item"]]], axis=1), ["two columns 'item'"]),
    ],
)
def test_a_frame_that_cannot_be_right_is_refused(frame: Any, named: list[str], settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        Config("GRU4Rec", frame, settings=settings)
    assert all(word in str(error.value) for word in named), error.value
