"""Data sets above `memory_map_above`: the same samples, from files that are made once and again if damaged."""

import logging
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from recbole_sigma.data import arrays, atomic
from recbole_sigma.data.windows import Windows
from tests.helpers.models import refused

HEADER = ("user_id:token", "item_id:token", "rating:float", "kind:token", "words:token_seq", "timestamp:float")
TIMES = st.sampled_from([
    [1, 2, 3, -4], ["1e3", "2.50", 2, 7], ["1300000000.1234567", "0.1", 5, "1.0"], [2**60, 2**60 + 1],
    ["0.1", "0.1000000000000000055511151231257827", 2],
])  # fmt: skip
SETTINGS: dict[str, list[Any]] = {
    "time_order": ["exact", "recbole"],
    "user_inter_num_interval": [None, "[3,inf)"],
    "val_interval": [None, {"rating": "[2,inf)"}, {"kind": ["x", "y"]}],
    "rm_dup_inter": [None, "first", "last"],
    "eval_args": [{"split": {"LS": "valid_and_test"}}, {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None}],
}
FEW = settings(max_examples=15, phases=[Phase.generate], deadline=None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory below which columns are kept, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(dataset: Any) -> list[Any]:
    """All that training and evaluation know of a data set, as plain values; or what it is refused for."""
    splits = [split.inter_feat.targets.tolist() for split in dataset.build()]
    flat = dataset.inter_feat.flat
    ids = [dataset.field2id_token[name].tolist() for name in ("user_id", "item_id", "kind", "words")]
    columns = {name: column.tolist() for name, column in flat.columns.items()}
    windows = Windows(dataset.inter_feat).stop.tolist()
    arrays_of_all = [splits, columns, flat.user_start.tolist(), windows]
    return [*arrays_of_all, ids, dataset.checksum(), dataset.statistics()]


@given(data=st.data(), times=TIMES)
@settings(
    max_examples=15, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_memory_mapped_samples_are_those_in_memory(data, times, write_inter, read_tiny, cache, monkeypatch):
    ids, kinds, words = (
        st.sampled_from("abcdé"),
        st.sampled_from(["x", "y", "z", ""]),
        st.sampled_from(["", "p q", "q"]),
    )
    row = st.tuples(ids, ids, st.sampled_from([1, 2.5, 3, ""]), kinds, words, st.sampled_from(times))
    rows = [("a", "a", 3, "x", "p", 1), *data.draw(st.lists(row, min_size=1, max_size=40))]
    write_inter([*rows, *(("g", item, 3, "x", "p", time) for time, item in enumerate("abcab"))], HEADER)
    chosen = {name: data.draw(st.sampled_from(values), label=name) for name, values in SETTINGS.items()}
    in_memory = content(read_tiny(**chosen))
    with monkeypatch.context() as patched:
        patched.setattr(arrays, "_ROWS", 3)
        patched.setattr(atomic, "_BLOCK", 90)
        patched.setattr(atomic, "_BLOCKS", 2)
        assert content(read_tiny(**chosen, memory_map_above=0)) == in_memory
    assert content(read_tiny(**chosen, memory_map_above=0)) == in_memory


def test_a_file_is_parsed_once_and_nothing_is_kept_of_a_small_one(write_inter, read_tiny, cache, monkeypatch):
    file = write_inter([("u", item, time) for time, item in enumerate("abcde")])
    first = read_tiny()
    assert not cache.exists() and [*file.parent.iterdir()] == [file]
    read_tiny(memory_map_above=0)
    monkeypatch.setattr(atomic.csv, "open_csv", None)
    again = read_tiny(memory_map_above=0)
    assert again.checksum() == first.checksum() and [*file.parent.iterdir()] == [file]
    assert [*(cache / "recbole-sigma" / "columns").iterdir()][1:] == []  # scratch files are gone
    file.write_text(file.read_text().replace("\te\t", "\tf\t"))
    with pytest.raises(TypeError):  # other content is another file
        read_tiny(memory_map_above=0)


@pytest.mark.parametrize("damage", ["another byte", "cut", "missing"])
def test_a_damaged_file_of_columns_is_made_again(damage, write_inter, read_tiny, cache, caplog):
    header = (*HEADER[:2], "timestamp:float", "kind:token")
    write_inter([(f"u{time % 2}", item, time, "x") for time, item in enumerate("abcdeabcde")], header)
    expected = read_tiny().inter_feat.flat.columns
    read_tiny(memory_map_above=0)
    (folder,) = (cache / "recbole-sigma" / "columns").iterdir()
    for file in sorted(folder.iterdir()):
        if not (before := file.read_bytes()) or (damage == "missing" and file.name == "columns.json"):
            continue
        file.unlink()
        if damage != "missing":
            middle = len(before) // 2
            file.write_bytes(before[:middle] + (bytes([before[middle] ^ 1]) + before[middle + 1 :]) * (damage != "cut"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = read_tiny(memory_map_above=0).inter_feat.flat.columns
        assert all(expected[name].equal(found[name]) for name in expected), file.name
        assert str(folder) in caplog.text, file.name


def test_a_cache_that_cannot_be_written_is_one_line_with_the_way_out(write_inter, read_tiny, cache):
    write_inter([("u", item, time) for time, item in enumerate("abcde")])
    cache.write_text("")
    with refused(str(cache), "XDG_CACHE_HOME", "memory_map_above"):
        read_tiny(memory_map_above=0)


def _make(folder: Path, started: Any, made: Any) -> None:
    def read(storage: arrays.Storage) -> arrays.Columns:
        made.put(None)
        started.wait(10)
        values = storage.empty(3, np.float64, "0")
        values[:] = 7
        return {"x": (values, None)}

    assert arrays.cached(folder, read)["x"][0].tolist() == [7, 7, 7]


def test_of_two_processes_one_makes_the_columns_and_the_other_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    started, made = context.Event(), context.SimpleQueue()
    processes = [context.Process(target=_make, args=(tmp_path / "key", started, made)) for _ in range(2)]
    for process in processes:
        process.start()
    made.get()
    started.set()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0] and made.empty()
