"""Checks of the columns against the settings that name them, and the normalisation of columns."""

import functools
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_sigma.data.prefixes import LIST_LENGTH, LIST_SUFFIX, NEG_PREFIX
from recbole_sigma.errors import UserError, did_you_mean

_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
_NUMBERS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)


_NAMING_COLUMNS = (
    "selected_features", "numerical_features", "val_interval", "normalize_field", "alias_of_user_id",
    "alias_of_item_id", "seq_len", "unload_col", "unused_col",
)  # fmt: skip


def feature_files(config: Any) -> list[str]:
    """Which of the files `user` and `item` a run reads, if they exist.

    For a model that reads no features of users and items, and settings that name no column of theirs, they play no
    role: an item that is missing there is an item like all others. A model of the user's own reads them if its source
    says so (`dataset.item_feat`, `get_user_feature()`).
    """
    named = {*(config["load_col"] or ())} - {"inter"}
    reads = "item_attribute" in config or _source_reads_features(config.model_class)
    if config["load_col"] is None and (reads or any(config[name] for name in _NAMING_COLUMNS if name in config)):
        named = {"user", "item"}
    return sorted(named)


@functools.cache
def _source_reads_features(model_class: type) -> bool:
    bundled = ("recbole", "recbole_sigma", "torch", "builtins")
    own = {base.__module__ for base in model_class.__mro__ if base.__module__.partition(".")[0] not in bundled}
    files = [getattr(sys.modules.get(module), "__file__", None) for module in own]
    sources = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files if file)
    return any(re.search(r"\b(get_)?(user|item)_feat(ure)?\b", source) for source in sources)


def feature_paths(config: Any) -> list[Path]:
    """The files of `feature_files` that exist."""
    paths = [Path(config["data_path"], f"{config.dataset}.{file}") for file in feature_files(config)]
    return list(filter(Path.is_file, paths))


def left_out(inter: pd.DataFrame, features: Mapping[str, tuple[Path, pd.DataFrame | None]]) -> Iterator[str]:
    """What RecBole's filter_inter_by_user_or_item leaves out, in a sentence for each file.

    `features` are, by column of ids, the file's path and its table. Raises UserError where no interaction is left.
    """
    for name, (path, table) in features.items():
        if table is None:
            continue
        missing = ~inter[name].astype(str).isin(table[name].astype(str)).to_numpy()
        ids = pd.unique(inter[name].astype(str)[missing])
        if missing.all() and len(ids):
            both = f"the first {name} is {ids[0]!r} in the .inter file and {table[name].astype(str).iloc[0]!r} here"
            raise UserError(f"{path}: none of its ids is in the .inter file: {both}; spell them alike")
        if len(ids):
            what = path.suffix.removeprefix(".") + "s" * (len(ids) > 1)
            verb = "are" if len(ids) > 1 else "is"
            counts = f"{missing.sum():,} of {len(inter):,} interactions are left out"
            yield f"{counts}: {len(ids):,} {what} {verb} not in {path.name} (first: {min(ids)})"


def check_names(setting: str, file: str, names: Iterable[str], columns: Collection[str]) -> None:
    """Refuse a name in `setting` that is no column of the file."""
    for name in names:
        if name not in columns:
            hint = did_you_mean(name, columns) or f"; its columns are {', '.join(columns)}"
            raise UserError(f"{setting}: the .{file} file has no column {name!r}{hint}")


def check_fields(config: Any, columns: Mapping[str, list[str]], kinds: Mapping[str, FeatureType]) -> None:
    """Refuse settings that name a column which is missing or of another type, and columns that hide one another.

    `columns`: the loaded columns of each file that exists (`inter`, `user`, `item`); `kinds`: the type of each column.
    """
    _check_clashes(config, columns)
    ids = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
    needed = (*ids, config["TIME_FIELD"])
    for name, values in (config["val_interval"] or {}).items():
        _check_kind("val_interval", name, kinds, [FeatureType.FLOAT if isinstance(values, str) else FeatureType.TOKEN])
    for name in config["seq_len"] or ():
        _check_kind("seq_len", name, kinds, (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ))
    for name in config["threshold"] or ():
        _check_kind("threshold", name, kinds, [FeatureType.FLOAT])
        if name not in columns["inter"] or name in needed:
            raise UserError(f"threshold: {name!r} must be a column of the .inter file other than its ids and its time")
        label = config["LABEL_FIELD"]
        if not label or label in needed:
            raise UserError(f"LABEL_FIELD must name a column of its own for the labels of threshold, got {label!r}")
    for setting, right in (
        ("normalize_field", _NUMBERS), ("numerical_features", _NUMBERS), ("selected_features", _TOKENS),
        ("alias_of_user_id", _TOKENS), ("alias_of_item_id", _TOKENS),
    ):  # fmt: skip
        for name in config.final_config_dict.get(setting) or ():
            if setting == "selected_features" and name in config["numerical_features"]:
                continue  # the only numbers that RecBole's models embed
            _check_kind(setting, name, kinds, right)
            if setting == "numerical_features" and name == config["TIME_FIELD"]:
                raise UserError(f"numerical_features: {name!r} is the time, which orders histories; leave it out")
            if setting.startswith("alias") and name in ids:
                raise UserError(f"{setting}: {name!r} is an id itself; name other columns that hold such ids")
    both = {*(config["alias_of_user_id"] or ())} & {*(config["alias_of_item_id"] or ())}
    if both:
        raise UserError(f"alias_of_user_id, alias_of_item_id: {min(both)!r} cannot hold ids of users and of items")
    if config["normalize_field"] and config["normalize_all"]:
        raise UserError("normalize_field, normalize_all: only one of them can be given")
    for file, names in (config["unused_col"] or {}).items():
        if file not in columns:
            raise UserError(f"unused_col: no .{file} file is loaded; leave {file!r} out")
        for name in {*names} & {*needed}:
            raise UserError(f"unused_col: {name!r} is needed; leave it out")


def _check_kind(setting: str, name: str, kinds: Mapping[str, FeatureType], right: Iterable[FeatureType]) -> None:
    if name not in kinds:
        hint = did_you_mean(name, kinds) or f"; the columns are {', '.join(kinds)}"
        raise UserError(f"{setting}: no column {name!r} is loaded{hint}")
    if kinds[name] not in right:
        wanted = " or ".join(each.value for each in right)
        raise UserError(f"{setting}: column {name!r} is of type {kinds[name].value}; it must be {wanted}")


def _check_clashes(config: Any, columns: Mapping[str, list[str]]) -> None:
    """Refuse two columns of one name, in two files or in a file and among those that are made for batches."""
    ids = {"user": config["USER_ID_FIELD"], "item": config["ITEM_ID_FIELD"]}
    file_of: dict[str, str] = {}
    for file, names in columns.items():
        for name in names:
            if name in file_of and ids.get(file) != name:
                raise UserError(
                    f"column {name!r} is in the .{file_of[name]} file and in the .{file} file; rename one, or name the "
                    "columns to be read in load_col"
                )
            file_of.setdefault(name, file)
    made_for_batches = {LIST_LENGTH}
    for name in columns["inter"]:
        made_for_batches |= {name + LIST_SUFFIX, NEG_PREFIX + name}
    for name in file_of:
        if name in made_for_batches:
            raise UserError(
                f"column {name!r} of the .{file_of[name]} file has the name of a column that is made for batches; "
                "rename it, or leave it out of load_col"
            )


def normalised(column: pd.Series) -> Any:
    """Numbers, or lists of numbers, scaled to 0 ... 1; 1 where all are the same, as in RecBole."""
    lists = column.dtype == object
    values = np.concatenate([np.zeros(0), *column]) if lists else column.to_numpy(dtype=np.float64)
    if len(values):
        low, high = values.min(), values.max()
        values = np.ones_like(values) if low == high else (values - low) / (high - low)
    return np.split(values, np.cumsum([len(row) for row in column])[:-1]) if lists else values
