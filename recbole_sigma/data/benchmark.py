"""Files that are split beforehand (setting `benchmark_filename`): NAME.train.inter, NAME.valid.inter, NAME.test.inter.

Either the files hold interactions, and a user's history grows from file to file; or each row is a sample with its
history in `item_id_list`, as RecBole has it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_sigma.data.prefixes import LIST_SUFFIX
from recbole_sigma.errors import UserError


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
