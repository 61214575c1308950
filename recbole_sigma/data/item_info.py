"""What is recorded about the items of a run beside their ids: how popular they are in training, and their titles."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_sigma.data.arrays import count
from recbole_sigma.data.atomic import AtomicFormat, read_atomic


def item_info(data: Any) -> dict[str, Any]:
    """The content of item_info.json: `counts` in training by item number, padding item included, `titles` by item id.

    `data`: data.preparation.Data
    """
    return {"counts": training_counts(data).tolist(), "titles": titles_of(data.dataset)}


def training_counts(data: Any) -> np.ndarray:
    """How often training has each item, (V,) int64: all interactions but the targets of validation and test."""
    samples, n_items = data.dataset.inter_feat, data.dataset.item_num
    items = samples.flat.columns[data.dataset.iid_field].numpy()
    counts = count(items[samples.interactions()], n_items)
    for loader in (data.valid, data.test):
        counts -= np.bincount(items[loader.dataset.inter_feat.targets], minlength=n_items)
    return counts


def titles_of(dataset: Any) -> dict[str, str]:
    """Titles of items from the data set's .item file; none if there is no such file or column."""
    file = Path(dataset.dataset_path, f"{dataset.dataset_name}.item")
    if not file.is_file():
        return {}
    item = dataset.iid_field
    form = AtomicFormat({item: "ITEM_ID_FIELD"})
    frame = read_atomic(file, form, lambda name: name == item or name.lower().endswith(("title", "name"))).frame
    titles = frame.astype(object).set_index(item)[[name for name in frame.select_dtypes("category") if name != item]]
    return {} if titles.empty else dict(titles.iloc[:, 0].dropna())
