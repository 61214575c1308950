"""RecBole 1.2.0 on today's NumPy, pandas and torch. Nothing else in the package knows of it.

`apply()` runs when `recbole_sigma` is imported, once, whether RecBole was imported before or not: every patch
replaces an attribute that RecBole looks up when it is used. Each function below is one patch; its docstring names the
version that made it necessary.

Two breaks need no patch. `recbole.quick_start` imports ray, and `recbole.model.general_recommender` imports
kmeans_pytorch: nothing here imports either. torch 2.6 made `torch.load` refuse pickled objects: we load none.
"""

import warnings
from typing import Any

import numpy as np
import pandas as pd
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
    _read_empty_sequences()
    _silence_deprecations()
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
    recbole_fill = recbole_dataset.Dataset._fill_nan

    def _fill_nan(self: Any) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                kind = self.field2type[field]
                if kind == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif kind == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
        recbole_fill(self)

    recbole_dataset.Dataset._fill_nan = _fill_nan


class _PandasForRecBole:
    """pandas, but for `read_csv`, which gives empty text instead of a missing value in columns of sequences."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        """`pandas.read_csv`; the type of a column stands in its title, as in `class:token_seq`."""
        frame = pd.read_csv(*args, **kwargs)
        for title in frame.columns:
            if str(title).endswith("_seq"):
                frame[title] = frame[title].fillna("")
        return frame


def _read_empty_sequences() -> None:
    """pandas 3.0, as above: an empty cell in a `token_seq` column stays a NaN, which RecBole then tries to split.

    The line stands in the middle of `Dataset._load_feat`, so the patch is made where the file is read.
    """
    recbole_dataset.pd = _PandasForRecBole()


def _silence_deprecations() -> None:
    """torch 2.4 (`torch.cuda.amp`), pandas 2 and 3, NumPy 2 and Python 3.12 (escapes) each deprecate what RecBole does.

    Only these two categories and only for RecBole's own modules: a user can do nothing about them. Its logger and all
    other warnings stay.
    """
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=r"recbole\.")
