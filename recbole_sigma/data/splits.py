"""Which samples train, validate and test: leave-one-out, ratios, cut-off times, or files that are split beforehand.

Files NAME.train.inter, NAME.valid.inter and NAME.test.inter (setting `benchmark_filename`) hold either interactions,
and a user's history grows from file to file, or samples with their histories in `item_id_list`, as RecBole has it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_sigma.data.arrays import blocks
from recbole_sigma.data.prefixes import LIST_SUFFIX, Prefixes
from recbole_sigma.errors import UserError

_FILTERS = ("rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval", "val_interval")


def check_split(config: Any) -> None:
    """Refuse settings of the split that are right alone and wrong together. Raises UserError."""
    modes = config["eval_args"]["mode"]
    if config["mask_seen"] and (drawn := [mode for mode in modes.values() if mode != "full"]):
        raise UserError(f"mask_seen: true ranks all unseen items, eval_args mode {drawn[0]} some; write mode: full")
    if config["benchmark_filename"] is not None:
        if given := next((name for name in _FILTERS if config[name] not in (None, "[0,inf)")), None):
            raise UserError(f"benchmark_filename: files that are split beforehand are not filtered; leave out {given}")
        return
    times = cut_offs(config["eval_args"])
    if times != sorted(times):
        raise UserError(f"eval_args: the cut-off times of split must grow, got {times}; write {{time: [T1, T2]}}")


def cut_offs(eval_args: Any) -> list[float]:
    """The times of `split: {time: ...}`, none for another split."""
    times = eval_args["split"].get("time", [])
    return times if isinstance(times, list) else [times]


def has_samples(config: Any) -> dict[str, bool]:
    """Whether the settings ask for samples to train, to validate and to test."""
    valid = test = True
    if config["benchmark_filename"] is None:
        split = config["eval_args"]["split"]
        if "LS" in split:
            valid, test = split["LS"] != "test_only", split["LS"] != "valid_only"
        elif "RS" in split:
            valid, test = (ratio > 0 for ratio in split["RS"][1:])
        else:
            valid = len(cut_offs(config["eval_args"])) == 2
    return {"training": True, "validation": valid, "test": test}


def all_targets(user_start: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Positions of the targets of `users`, one user after the other: all interactions but each user's first.

    In RecBole's order users are sorted by the time of their first target.
    """
    first, samples = user_start[users] + 1, user_start[users + 1] - user_start[users] - 1
    ends = np.cumsum(samples)
    targets = np.ones(ends[-1], np.int32 if user_start[-1] < 2**31 else np.int64)  # steps from one target to the next
    targets[ends - samples] = np.diff(first, prepend=0) - np.append(0, samples[:-1] - 1)
    return np.cumsum(targets, dtype=targets.dtype, out=targets)


def split_rows(config: Any, samples: Prefixes, time: np.ndarray | None, file: np.ndarray | None) -> list[np.ndarray]:
    """Rows of `samples` that train, validate and test, as RecBole splits them and in its order.

    `time` (samples,) of the targets, where a split depends on it; `file` (samples,) is the number of the file that a
    target comes from, with `benchmark_filename`.
    """
    split = config["eval_args"]["split"]
    if file is not None:
        return [np.flatnonzero(file == number) for number in range(3)]
    if "time" in split:
        assert time is not None
        *first, last = cut_offs(config["eval_args"])
        in_test = time >= last
        in_valid = ~in_test & (time >= first[0]) if first else np.zeros_like(in_test)
        return [np.flatnonzero(~in_test & ~in_valid), np.flatnonzero(in_valid), np.flatnonzero(in_test)]
    if "RS" in split and config["eval_args"]["group_by"] != "user":
        assert time is not None
        order = np.argsort(samples.targets)  # by user; then, as equal times keep this order, by time
        order = order[np.argsort(time[order], kind="stable")]
        return np.split(order, np.cumsum(_sizes(np.array([len(order)]), split["RS"])[0, :2]))
    part = np.empty(len(samples), np.int8)
    for block in blocks(len(samples)):
        part[block] = _parts(samples, block, split)
    return [np.flatnonzero(part == number) for number in range(3)]


def _parts(samples: Prefixes, rows: slice, split: Any) -> np.ndarray:
    """Which split some samples are in, where it depends on how many the user has: (n,), 0, 1 or 2."""
    before = samples.history_lengths(rows) - 1  # samples of the user before this one
    user = samples.flat.columns[samples.flat.user].numpy()[samples.targets[rows]]
    count = samples.flat.user_start[user + 1] - samples.flat.user_start[user] - 1
    if "LS" in split:
        # A user's first sample always stays in training.
        held_out = np.minimum(1 + (split["LS"] == "valid_and_test"), count - 1)
        valid = held_out if split["LS"] == "valid_only" else held_out - 1
        size = np.stack([count - held_out, np.maximum(valid, 0)], 1)
    else:
        size = _sizes(count, split["RS"])
    return (before >= size[:, 0]).astype(np.int8) + (before >= size[:, 0] + size[:, 1])


def _sizes(count: np.ndarray, ratios: list[float]) -> np.ndarray:
    """Samples in each part of groups of `count` samples: (n,) -> (n, 3); parts are rounded as by RecBole.

    All parts but the first are rounded down, but a part that would get less than one sample gets one from the first,
    as long as that keeps one.
    """
    exact = np.array([ratio / sum(ratios) for ratio in ratios]) * count[:, None]
    size = exact.astype(np.int64)
    size[:, 0] = count - size[:, 1:].sum(1)
    for part in (2, 1):
        gets_one = (size[:, 0] > 1) & (exact[:, part] > 0) & (exact[:, part] < 1)
        size[gets_one, part] += 1
        size[gets_one, 0] -= 1
    return size


def interaction_files(config: Any) -> list[Path]:
    """The .inter files of a data set, in the order of its splits. Raises UserError for one that is missing."""
    folder, name = Path(config["data_path"]), config["dataset"]
    parts = [f"{name}.{part}.inter" for part in config["benchmark_filename"] or ()]
    files = [folder / part for part in parts or [f"{name}.inter"]]
    for file in files:
        if not file.is_file():
            setting = "benchmark_filename" if parts else "data_path, dataset"
            raise UserError(f"{file}: no such file (settings {setting}); see dataset/README.md")
    return files


def lists_histories(file: Path, item_field: str) -> bool:
    """Whether the header of `file` has a column with the history of each row."""
    with file.open("rb") as content:
        return f"{item_field}{LIST_SUFFIX}:".encode() in content.readline()


def unroll(frame: pd.DataFrame, user: str, item: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """One row per item of a history and one for its target, sample after sample.

    Returns the rows, the start of each sample (samples + 1,), and the sample of each row. They have the user, the item
    and numbers that have a list, too. Raises UserError where the lists of a sample have different lengths.
    """
    length = frame[item + LIST_SUFFIX].map(len).to_numpy()
    start = np.concatenate([[0], np.cumsum(length + 1)])
    sample = np.repeat(np.arange(len(frame)), length + 1)
    target = np.zeros(start[-1], dtype=bool)
    target[start[1:] - 1] = True
    columns: dict[str, Any] = {user: frame[user].to_numpy()[sample]}
    numbers = [name for name in frame.select_dtypes("float") if name + LIST_SUFFIX in frame]
    for name in (item, *numbers):
        wrong = np.flatnonzero(frame[name + LIST_SUFFIX].map(len).to_numpy() != length)
        if len(wrong):
            lists = f"{name}{LIST_SUFFIX} and {item}{LIST_SUFFIX}"
            raise UserError(f"benchmark_filename: {lists} differ in length in row {wrong[0] + 1} of all files")
        values = frame[name].to_numpy()
        columns[name] = np.empty(len(target), dtype=values.dtype)
        columns[name][target] = values
        columns[name][~target] = np.concatenate([values[:0], *frame[name + LIST_SUFFIX]])
    return pd.DataFrame(columns), start, sample
