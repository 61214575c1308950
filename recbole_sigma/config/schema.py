"""What a setting may be: the kind of its default value, a range, or one of a few names."""

import math
from collections.abc import Mapping
from typing import Any

from recbole_sigma.config.shapes import wrong_shape
from recbole_sigma.config.values import Given
from recbole_sigma.errors import UserError

_CHOICES = {
    "time_order": ("exact", "recbole"),
    "loss_type": ("CE", "BPR"),
    "train_mode": ("prefix", "sequence"),
    "hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid"),
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop"),  # no gradient here is sparse
    "state": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "rm_dup_inter": ("first", "last"),
}
# Kinds of settings whose default is null. Others with that default take anything.
_KIND_IF_NULL: dict[str, type] = {
    "threads": int,
    "train_neg_sample_args": dict,
    "clip_grad_norm": dict,
    "normalize_all": bool,
}
# Settings whose default is not null, and which RecBole or we take as null for "all" or "none".
_MAY_BE_NULL = {
    "load_col", "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item",
    "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD",  # null has a message of its own
}  # fmt: skip
# RecBole's features that no model here uses, and that would be without effect or fail.
_NOT_SUPPORTED = {
    "benchmark_filename": "files that are split beforehand",
    "additional_feat_suffix": "files other than .inter, .user and .item",
    "preload_weight": "weights from a file",
    "discretization": "buckets of numbers",
    "alias_of_entity_id": "knowledge graphs",
    "alias_of_relation_id": "knowledge graphs",
}
# From 0 to 1; RecBole's files write some of these defaults as whole numbers.
_FRACTIONS = {"global_ratio", "spatial_ratio", "mask_ratio", "ft_ratio"}
_AT_LEAST_ONE = {
    "epochs", "train_batch_size", "eval_batch_size", "eval_step", "MAX_ITEM_LIST_LENGTH", "topk",
    "length_ratio", "nproc", "threads",
    "embedding_size", "hidden_size", "inner_size", "n_layers", "num_layers", "n_heads",
    "d_state", "d_conv", "expand", "topk_factor",
}  # fmt: skip
_AT_LEAST_ZERO = {
    "seed",
    "worker",
    "stopping_step",
    "weight_decay",
    "loss_decimal_place",
    "metric_decimal_place",
    "r",
    "lmd",
    "lmd_sem",
    "initializer_range",
    "layer_norm_eps",
}
_MOST = {
    # more is no machine's, or never ends
    **dict.fromkeys(("threads", "worker", "nproc", "n_layers", "num_layers"), 1024),
    **dict.fromkeys(("loss_decimal_place", "metric_decimal_place"), 100),
    # the product of two is a number of 64 bits
    **dict.fromkeys(("MAX_ITEM_LIST_LENGTH", "train_batch_size", "eval_batch_size", "embedding_size"), 2**31 - 1),
    **dict.fromkeys(("hidden_size", "inner_size", "d_state", "d_conv", "expand", "topk_factor"), 2**31 - 1),
    "seed": 2**32 - 1,  # NumPy's
}
_LARGEST = 10**18 - 1  # as settings.py reads them; in 64 bits, sums and doubles of it too
_GREATER_THAN_ZERO = {"learning_rate", "tau"}  # fmt: skip


def check(key: str, given: Given, default: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise a UserError naming the setting, the value and what would be right, unless `given` may stand for `default`.

    `choices` are the model's own settings with a few allowed values each.
    """
    value = given.value
    if key in _NOT_SUPPORTED and value is not None:
        raise given.error(f"{key}: {_NOT_SUPPORTED[key]} are not supported; leave it out")
    wanted = _wrong_kind(key, value, default)
    if not wanted and value is not None:
        wanted = _wrong_choice(key, value, {**_CHOICES, **choices}) or _out_of_range(key, value)
    if key == "transform" and value != default:  # a part of the model: RecBole's classes read what it makes
        wanted = f"{default} with this model" if default else "left out with this model"
    if wanted:
        raise given.error(f"{key} must be {wanted}, got {_shown(value)}")


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise a UserError for settings that are right alone and wrong together."""
    n_heads, hidden_size = settings.get("n_heads"), settings.get("hidden_size")
    if isinstance(n_heads, int) and isinstance(hidden_size, int) and hidden_size % n_heads:
        raise UserError(f"n_heads must divide hidden_size, {hidden_size}, got {n_heads}")
    _check_names(settings)


def _check_names(settings: Mapping[str, Any]) -> None:
    """A batch holds columns under names that settings make: two of one name would be one column."""
    made: dict[str, str] = {}
    item, suffix = settings["ITEM_ID_FIELD"] or "", settings["LIST_SUFFIX"]
    for setting, name in {
        **{key: settings[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "ITEM_LIST_LENGTH_FIELD")},
        "LIST_SUFFIX": f"{item}{suffix}",
        "NEG_PREFIX": f"{settings['NEG_PREFIX']}{item}",
    }.items():
        if name and name in made:
            raise UserError(f"{made[name]} and {setting} both make a column {name!r}; give them different names")
        made[name] = setting


def _wrong_kind(key: str, value: Any, default: Any) -> str | None:
    """What `value` should have been by the kind of the default, or None if it is right."""
    if value is None:
        may_be_null = default is None or key in _MAY_BE_NULL
        return None if may_be_null else _name_of_kind(type(default))
    wanted = wrong_shape(key, value)
    if wanted:
        return wanted
    if default is None:
        kind = _KIND_IF_NULL.get(key)
        return None if kind is None else _not_of(kind, value)
    if isinstance(default, list):
        return _wrong_list(value, default)
    if key == "gpu_id" and not isinstance(value, (bool, float, dict)):
        return None
    return _not_of(float if key in _FRACTIONS else type(default), value)


def _wrong_list(value: Any, default: list[Any]) -> str | None:
    """RecBole takes one value for a list of one (`metrics: NDCG`, `topk: 10`)."""
    kinds = {type(each) for each in default}
    if len(kinds) != 1 or kinds & {list, dict}:
        return None if isinstance(value, list) else "a list"
    kind = kinds.pop()
    items = value if isinstance(value, list) else [value]
    if items and all(_not_of(kind, each) is None for each in items):
        return None
    return f"{_name_of_kind(kind)} or a list of them"


def _not_of(kind: type, value: Any) -> str | None:
    """An integer stands for a float; true and false stand for no number."""
    accepted = (int, float) if kind is float else (kind,)
    right = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    return None if right else _name_of_kind(kind)


def _name_of_kind(kind: type) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return names.get(kind, "a mapping such as {name: value}")


def _wrong_choice(key: str, value: Any, choices: Mapping[str, tuple[Any, ...]]) -> str | None:
    if key in choices and value not in choices[key]:
        return f"one of {', '.join(map(str, choices[key]))}"
    return None


def _out_of_range(key: str, value: Any) -> str | None:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool) or not isinstance(each, (int, float)):
            continue
        if isinstance(each, float) and not math.isfinite(each):
            return "a finite number"
        if isinstance(each, int) and abs(each) > _LARGEST:
            return "of at most 18 digits"
        if key in _AT_LEAST_ONE and each < 1:
            return "at least 1"
        if key in _AT_LEAST_ZERO and each < 0:
            return "at least 0"
        if key in _GREATER_THAN_ZERO and each <= 0:
            return "greater than 0"
        if key in _MOST and each > _MOST[key]:
            return f"at most {_MOST[key]}"
        if key in _FRACTIONS and not 0 <= each <= 1:
            return "from 0 to 1"
        if "dropout" in key and not 0 <= each < 1:
            return "at least 0 and less than 1"
    return None


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a run's numbers (until schema.yaml has roles)."""
    machine = {
        "data_path", "checkpoint_dir", "show_progress", "state", "threads", "use_gpu", "gpu_id", "eval_batch_size",
        "ip", "port",
    }  # fmt: skip
    return {name: value for name, value in settings.items() if name not in machine}
