"""RecBole 1.2.0 on today's NumPy, pandas and torch. Nothing else in the package knows of it.

`apply()` runs when `recbole_sigma` is imported, once, whether RecBole was imported before or not: every patch
replaces an attribute that RecBole looks up when it is used. Each function below is one patch; its docstring names the
version that made it necessary.

Two breaks need no patch. `recbole.quick_start` imports ray, and `recbole.model.general_recommender` imports
kmeans_pytorch: nothing here imports either. torch 2.6 made `torch.load` refuse pickled objects: we load none.
"""

import importlib
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data.dataset import dataset as recbole_dataset
from recbole.utils import FeatureType

# Scalar types under the names that RecBole's code reads.
_NUMPY_NAMES = {"bool": np.bool_, "float": np.float64, "long": np.int_, "str": np.str_}

_applied = False


def apply() -> None:
    """Apply every patch; a second call does nothing."""
    global _applied
    if _applied:
        return
    _restore_numpy_names()
    _keep_numpy_as_it_is()
    _fill_missing_values()
    _read_sequences()
    _silence_deprecations()
    _leave_anomaly_detection_alone()
    _applied = True


def _restore_numpy_names() -> None:
    """NumPy 1.24 dropped `np.float`, `np.str` ...; RecBole's metrics, interactions and datasets read them.

    Names that NumPy has (2.0 brought `np.bool` and `np.long` back) are left as they are.
    """
    for name, scalar in _NUMPY_NAMES.items():
        if name not in vars(np):  # hasattr() would warn about names that NumPy plans to reuse
            setattr(np, name, scalar)


def _keep_numpy_as_it_is() -> None:
    """NumPy 2.0 dropped `np.float_`, `np.complex_`, `np.unicode_`: building any RecBole Config raises AttributeError.

    RecBole's method assigns eight names inside NumPy, also over those that exist; ours adds the missing ones only.
    """

    def compatibility_settings(self: RecBoleConfig) -> None:
        _restore_numpy_names()

    RecBoleConfig.compatibility_settings = compatibility_settings


def _fill_missing_values() -> None:
    """pandas 3.0: `feat[field].fillna(..., inplace=True)` fills a copy, so that missing values stay in the data."""

    def _fill_nan(self: Any) -> None:
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
                    feat[field] = [empty if isinstance(each, float) else each for each in feat[field]]

    recbole_dataset.Dataset._fill_nan = _fill_nan


class _Column(pd.Series):
    """A Series as before pandas 3.0: `agg(len)` is the length of each element, and `values` can be written to."""

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

    @property
    def _constructor_sliced(self) -> type[_Column]:
        return _Column


class _PandasForRecBole:
    """pandas, but for the two functions with which RecBole makes tables."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> _Table:
        """`pandas.read_csv`; a column's type stands in its title, as in `class:token_seq`."""
        table = _Table(pd.read_csv(*args, **kwargs))
        for title in table.columns:
            if str(title).endswith("_seq"):
                table[title] = table[title].fillna("")
        return table

    @staticmethod
    def merge(*args: Any, **kwargs: Any) -> _Table:
        """`pandas.merge`, of whose tables the first decides the type of the result."""
        return _Table(pd.merge(*args, **kwargs))


def _read_sequences() -> None:
    """pandas 3.0: `fillna(inplace=True)`, as above, leaves a NaN in a `token_seq` column that RecBole then splits;
    `feat[field].agg(len)` counts rows, not the elements of each; tensors made from `feat[field].values` are read-only.

    All stand in the middle of long methods of Dataset, so the patch is made where they read a file.
    """
    recbole_dataset.pd = _PandasForRecBole()


def _silence_deprecations() -> None:
    """torch 2.4 (`torch.cuda.amp`), pandas 2 and 3 (`inplace`) and NumPy 2 each deprecate what RecBole does.

    Only these categories and only for RecBole's own modules: a user can do nothing about them. Its logger and all
    other warnings stay.
    """
    # pandas 3 says with the last one that `inplace` did nothing: what two of the patches above mend.
    for category in (DeprecationWarning, FutureWarning, pd.errors.ChainedAssignmentError):
        warnings.filterwarnings("ignore", category=category, module=r"recbole\.")
    # NumPy 2.0 says this of itself when RecBole sorts torch tensors by np.argsort.
    warnings.filterwarnings("ignore", message="__array_wrap__ must accept context", category=DeprecationWarning)


def _leave_anomaly_detection_alone() -> None:
    """Any version: RecBole's SINE switches `torch.autograd.set_detect_anomaly` on when it is imported, for the whole
    process, and RecBole imports it with every sequential model. Each step of training then takes twice as long.
    """
    sine = "recbole.model.sequential_recommender.sine"
    chosen = torch.is_anomaly_enabled() and sine not in sys.modules
    importlib.import_module(sine)
    torch.autograd.set_detect_anomaly(chosen)
