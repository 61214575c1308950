"""What is recorded about the items of a run beside their ids: how popular they are in training, and their titles."""

from pathlib import Path
from typing import Any

from recbole_sigma.data.atomic import AtomicFormat, read_atomic


def item_info(data: Any) -> dict[str, Any]:
    """The content of item_info.json: `counts` in training by item number, padding item included, `titles` by item id.

    `data`: data.preparation.Data
    """
    return {"counts": data.valid.item_frequency.tolist(), "titles": titles_of(data.dataset)}


def titles_of(dataset: Any) -> dict[str, str]:
    """Titles of items from the data set's .item file; none if there is no such file or column."""
    file = Path(dataset.dataset_path, f"{dataset.dataset_name}.item")
    if not file.is_file():
        return {}
    item = dataset.iid_field
    form = AtomicFormat({item: "ITEM_ID_FIELD"})
    frame = read_atomic(file, form, lambda name: name == item or name.lower().endswith(("title", "name"))).frame
    frame = frame.drop_duplicates(item)
    titles = frame.astype(object).set_index(item)[[name for name in frame.select_dtypes("category") if name != item]]
    return {} if titles.empty else dict(titles.iloc[:, 0].dropna())
