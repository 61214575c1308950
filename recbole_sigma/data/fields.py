"""Checks of the columns against the settings that name them, and the normalisation of columns."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_sigma.data.prefixes import LIST_LENGTH, LIST_SUFFIX, NEG_PREFIX
from recbole_sigma.errors import UserError, did_you_mean

_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
_NUMBERS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)


def check_fields(config: Any, columns: Mapping[str, list[str]], kinds: Mapping[str, FeatureType]) -> None:
    """Refuse settings that name a column which is missing or of another type, and columns that hide one another.

    `columns`: the loaded columns of each file that exists (`inter`, `user`, `item`); `kinds`: the type of each column.
    """
    _check_clashes(config, columns)
    ids = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
    needed = (*ids, config["TIME_FIELD"])
    for name, values in (config["val_interval"] or {}).items():
        _check_kind("val_interval", name, kinds, [FeatureType.FLOAT if isinstance(values, str) else FeatureType.TOKEN])
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
        for name in config[setting] or ():
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
