"""Data: atomic files -> SequenceDataset -> loaders of batches. Knows no model."""

from recbole_sigma import compat
from recbole_sigma.data.dataset import SequenceDataset
from recbole_sigma.data.preparation import create_dataset, data_preparation

__all__ = ["SequenceDataset", "create_dataset", "data_preparation"]

compat.apply()  # before anything here uses RecBole
