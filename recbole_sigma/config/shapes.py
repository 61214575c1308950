"""What settings may be whose default value does not say it: mappings, lists, intervals, names, paths.

RecBole takes these as they come and fails on them far inside, or does something else than was meant.
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any

Test = Callable[[Any], bool]

_FILES = ("inter", "user", "item")
_INTERVAL = re.compile(r"\s*[\[(]([^,;]*),([^,;]*)[\])]\s*")


def wrong_shape(key: str, value: Any) -> str | None:
    """What `value`, which is not null, should have been as the setting `key`; None if it is right."""
    if key not in _SHAPES:
        return None
    test, wanted = _SHAPES[key]
    return None if test(value) else wanted


def is_number(value: Any) -> bool:
    """A finite number; neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def intervals(text: str) -> list[tuple[float, float]] | None:
    """The ends of RecBole's `[5,inf)` or `(0,1];[3,4)`, or None for any other text."""
    found = [_INTERVAL.fullmatch(each) for each in text.split(";")]
    try:
        ends = [(float(each[1]), float(each[2])) for each in found if each]
    except ValueError:
        return None
    right = len(ends) == len(found) and all(low <= high for low, high in ends)  # NaN is neither
    return ends if right else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_name(value: Any) -> bool:
    """A column's name, or a part of one: it stands in headers and in messages."""
    return _is_text(value) and value.isprintable() and ":" not in value


def _is_path(value: Any) -> bool:
    try:
        return _is_text(value) and b"\0" not in os.fsencode(value)
    except UnicodeError:
        return False


def _is_separator(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1 and value.isascii() and (value == "\t" or value in _PUNCTUATION)


_PUNCTUATION = " !\"#$%&'()*,/;<=>?@[\\]^`{|}~"  # of ASCII, without what stands in names and numbers


def _is_interval(value: Any) -> bool:
    return isinstance(value, str) and intervals(value) is not None


def _is_range(value: Any) -> bool:
    """What a column's values may be: an interval of numbers, or a list of tokens."""
    return _is_interval(value) or _list_of(_is_text)(value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _whole(low: int, high: int) -> Test:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_port(value: Any) -> bool:
    return str(value).isdecimal() and len(str(value)) <= 5 and 1 <= int(value) <= 65535


def _is_clipping(value: Any) -> bool:
    known = isinstance(value, dict) and value.keys() <= {"max_norm", "norm_type"} and "max_norm" in value
    return known and all(is_number(each) and each > 0 for each in value.values())


def _is_sampling(value: Any) -> bool:
    """RecBole's mapping; null, or no distribution, is no sampling."""
    tests: dict[str, Test] = {
        "distribution": lambda each: each in ("uniform", "popularity", "None", None),
        "sample_num": _whole(1, 2**16),
        "alpha": is_number,
        "dynamic": lambda each: each is False,  # our trainer shows a loader no model
        "candidate_num": _whole(0, 0),
    }
    return isinstance(value, dict) and all(tests[name](each) for name, each in value.items() if name in tests)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _mapping(key: Test, test: Test, at_most: float = math.inf) -> Test:
    def holds(value: Any) -> bool:
        return (
            isinstance(value, dict) and 1 <= len(value) <= at_most and all(map(key, value)) and
            all(map(test, value.values()))
        )  # fmt: skip

    return holds


_names = _list_of(_is_name)
_columns = _mapping(lambda key: key in _FILES, _names)
_columns_or_all = _mapping(lambda key: key in _FILES, lambda value: value == "*" or _names(value))

_A_NAME = "the name of a column: text without ':'"
_NAMES = "a list of columns, such as [rating]"
_COLUMNS = "a mapping such as {inter: [rating], item: [class]}, with the files inter, user, item"
_INTERVALS = "an interval such as '[5,inf)', or several as in '[1,3];[5,9]'"
_PATH = "the path of a folder"

_NAME_SETTINGS = (
    "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD", "RATING_FIELD", "ITEM_LIST_LENGTH_FIELD",
    "LIST_SUFFIX", "NEG_PREFIX", "POSITION_FIELD",
)  # fmt: skip

_SHAPES: dict[str, tuple[Test, str]] = {
    # which columns
    **dict.fromkeys(_NAME_SETTINGS, (_is_name, _A_NAME)),
    "load_col": (_columns_or_all, f"{_COLUMNS}; '*' stands for all of a file's"),
    "unload_col": (_columns, _COLUMNS),
    "unused_col": (_columns, _COLUMNS),
    "numerical_features": (_names, _NAMES),
    "selected_features": (_names, _NAMES),
    "normalize_field": (_names, _NAMES),
    "alias_of_user_id": (_names, _NAMES),
    "alias_of_item_id": (_names, _NAMES),
    # how they are read
    "field_separator": (_is_separator, "one character that no name or number holds, such as a tab or a comma"),
    "seq_separator": (_is_text, "text such as ' '"),
    "encoding": (_is_text, "text such as utf-8"),
    "seq_len": (_mapping(_is_name, _is_length), "a mapping such as {class: 3}, with whole numbers from 1"),
    # which rows
    "val_interval": (_mapping(_is_name, _is_range), "a mapping such as {rating: '[3,inf)', user_id: ['u1', 'u2']}"),
    "threshold": (_mapping(_is_name, is_number, 1), "a mapping of one column to a number, such as {rating: 3}"),
    "user_inter_num_interval": (_is_interval, _INTERVALS),
    "item_inter_num_interval": (_is_interval, _INTERVALS),
    # the machine
    "data_path": (_is_path, _PATH),
    "checkpoint_dir": (_is_path, _PATH),
    "dataset_save_path": (_is_path, _PATH),
    "dataloaders_save_path": (_is_path, _PATH),
    "world_size": (_whole(-1, 2**16), f"a whole number from -1 to {2**16}"),
    "offset": (_whole(0, 2**16), f"a whole number from 0 to {2**16}"),
    "ip": (_is_name, "the address of a machine"),
    "port": (_is_port, "a number from 1 to 65535"),
    # training
    "train_neg_sample_args": (
        _is_sampling,
        "a mapping such as {distribution: uniform, sample_num: 1, alpha: 1.0, dynamic: false, candidate_num: 0}, with "
        "the distribution uniform or popularity; dynamic sampling is not supported",
    ),
    "clip_grad_norm": (_is_clipping, "a mapping such as {max_norm: 1}, of positive numbers; norm_type may stand in it"),
}  # fmt: skip
