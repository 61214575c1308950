"""RecBole 1.2.0 on today's NumPy, pandas and torch. No other module of the package depends on these details.

RecBole may be imported before or after `apply()`: every patch replaces an attribute that RecBole looks up when it is
used. Not patched but avoided: `recbole.quick_start` (imports ray), `recbole.model.general_recommender` (imports
kmeans_pytorch), and pickled objects, which `torch.load` refuses since torch 2.6.
"""

import importlib
import sys
import warnings
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data.dataset import dataset as recbole_dataset
from recbole.utils import FeatureType

from recbole_sigma.config.values import properties_path, read_config_files

_NUMPY_NAMES = {"bool": np.bool_, "float": np.float64, "long": np.int_, "str": np.str_}
_SINE = "recbole.model.sequential_recommender.sine"
_LOAD_DEFAULTS, _MERGE = RecBoleConfig._load_internal_config_dict, RecBoleConfig._get_final_config_dict
_NEEDED_BY_MODELS = ("loss_type", "label_smoothing", "cosine_temperature", "length_ratio")


@cache
def apply() -> None:
    """Apply every patch; a second call does nothing."""
    _restore_numpy_names()
    # NumPy 2.0 dropped `np.float_`, `np.complex_` and `np.unicode_`, which RecBole's method reads for every Config.
    RecBoleConfig.compatibility_settings = lambda self: _restore_numpy_names()
    RecBoleConfig._load_internal_config_dict = _load_internal_config_dict
    RecBoleConfig._get_final_config_dict = _get_final_config_dict
    # pandas 3.0: RecBole's calls are inside long methods of Dataset, so pandas is replaced in its module.
    recbole_dataset.Dataset._fill_nan = _fill_nan
    recbole_dataset.pd = _PandasForRecBole()
    # torch 2.4 (`torch.cuda.amp`), pandas 2 and 3 (`inplace`) and NumPy 2 deprecate what RecBole does, and a user
    # cannot change that. The last category says that `inplace` did nothing, which `_fill_nan` and `read_csv` fix.
    for category in (DeprecationWarning, FutureWarning, pd.errors.ChainedAssignmentError):
        warnings.filterwarnings("ignore", category=category, module=r"recbole\.")
    # NumPy 2.0 attributes this one to itself when RecBole sorts torch tensors by np.argsort.
    warnings.filterwarnings("ignore", message="__array_wrap__ must accept context", category=DeprecationWarning)
    # Any version: RecBole's SINE enables `torch.autograd.set_detect_anomaly` for the whole process when it is
    # imported, and RecBole imports it with every sequential model. Each training step then takes twice as long.
    enabled_before = torch.is_anomaly_enabled() and _SINE not in sys.modules
    importlib.import_module(_SINE)
    torch.autograd.set_detect_anomaly(enabled_before)


def _restore_numpy_names() -> None:
    """Add the names that NumPy 1.24 dropped and RecBole reads, except those that 2.0 restored (`bool`, `long`)."""
    for name, scalar in _NUMPY_NAMES.items():
        if name not in vars(np):  # hasattr() would warn about names that NumPy plans to reuse
            setattr(np, name, scalar)


def _fill_nan(self: Any) -> None:
    """`Dataset._fill_nan`; since pandas 3.0 RecBole's `feat[field].fillna(..., inplace=True)` fills a copy."""
    for name in self.feat_name_list:
        feat = getattr(self, name)
        for field in feat:
            kind = self.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]


def _load_internal_config_dict(self: Any, model: str, model_class: type, dataset: str) -> None:
    """RecBole's defaults of a model, and for a class of ours those of `properties/`, which RecBole does not look into.

    Only what a model needs: RecBole's own Config keeps RecBole's protocol.
    """
    _LOAD_DEFAULTS(self, model, model_class, dataset)
    if _is_ours(model_class):
        ours = read_config_files([properties_path() / "overall.yaml"])
        ours = {name: ours[name] for name in _NEEDED_BY_MODELS} | read_config_files(_defaults_of(model_class))
        self.internal_config_dict.update({name: given.value for name, given in ours.items()})


def _get_final_config_dict(self: Any) -> dict[str, Any]:
    """RecBole's, but for its default of one negative item per target, which a model of ours with CE has no use for."""
    settings: dict[str, Any] = _MERGE(self)
    given = self.external_config_dict
    if _is_ours(self.model_class) and settings["loss_type"] == "CE" and "train_neg_sample_args" not in given:
        settings["train_neg_sample_args"] = None
    return settings


def _is_ours(model_class: type) -> bool:
    return any(base.__module__.startswith("recbole_sigma.model.") for base in model_class.__mro__)


def _defaults_of(model_class: type) -> list[Path]:
    """The files of `properties/model/` for a class and its bases, from weak to strong."""
    files = [properties_path() / "model" / f"{base.__name__}.yaml" for base in reversed(model_class.__mro__)]
    return list(filter(Path.is_file, files))


def repair_trainers() -> None:
    """Let RecBole's Trainer read its own checkpoint, and its HyperTuning search exhaustively.

    torch 2.6 and later read plain values only, and RecBole saves its Config; Hyperopt 0.2.6 and later want a Generator.
    """
    recbole_trainer: Any = importlib.import_module("recbole.trainer.trainer")
    recbole_trainer.torch = _Module(torch, save=_save_plain)
    tuning: Any = importlib.import_module("recbole.trainer.hyper_tuning")
    tuning.np = _Module(np, random=SimpleNamespace(RandomState=np.random.default_rng))


class _Module:
    """A module of which some names are replaced."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        self._module = module
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _save_plain(state: dict[str, Any], file: str, **_: Any) -> None:
    """`torch.save` of what `torch.load` reads without executing it: the Config becomes a mapping of plain values."""
    plain = (bool, int, float, str, list, dict, type(None))
    settings = state["config"].final_config_dict.items()
    config = {name: value for name, value in settings if isinstance(value, plain) and not isinstance(value, Enum)}
    torch.save({**state, "config": config, "best_valid_score": float(state["best_valid_score"])}, file)


class _Column(pd.Series):
    """A Series as before pandas 3.0: `agg(len)` measures each element, not the column, and `values` is writable."""

    @property
    def _constructor(self) -> type["_Column"]:
        return _Column

    def agg(self, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self.map(len) if func is len else super().agg(func, *args, **kwargs)

    @property
    def values(self) -> Any:
        values = super().values
        read_only = isinstance(values, np.ndarray) and not values.flags.writeable
        return values.copy() if read_only else values


class _Table(pd.DataFrame):
    """A DataFrame of such columns."""

    @property
    def _constructor(self) -> type["_Table"]:
        return _Table

    _constructor_sliced = _Column


class _PandasForRecBole:
    """pandas, except for the two functions with which RecBole creates tables."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> _Table:
        """`pandas.read_csv`, with missing sequences (`:token_seq`) empty: in pandas 3.0 RecBole leaves NaN there."""
        table = _Table(pd.read_csv(*args, **kwargs))
        for title in table.columns:
            if str(title).endswith("_seq"):
                table[title] = table[title].fillna("")
        return table

    @staticmethod
    def merge(*args: Any, **kwargs: Any) -> _Table:
        """`pandas.merge`, whose result has the type of the first table."""
        return _Table(pd.merge(*args, **kwargs))
