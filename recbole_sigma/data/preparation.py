"""From a Config to a data set and its three loaders; RecBole's functions of the same names, without their pickles."""

from typing import Any

import numpy as np
import recbole.data.dataset
from recbole.data.utils import create_samplers
from recbole.utils import ModelType

from recbole_sigma.data.dataset import SequenceDataset
from recbole_sigma.data.loaders import EvalLoader, TrainLoader, UniformNegatives, WindowLoader
from recbole_sigma.data.windows import Windows
from recbole_sigma.errors import UserError

_WITH_LABELS = ("DIN", "DIEN")  # RecBole's sequential models of clicks


def create_dataset(config: Any) -> SequenceDataset:
    """Read the data set that `config` names.

    Raises UserError for files that are missing or malformed, and for models that need another kind of data set.
    """
    model = config["model"]
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or hasattr(recbole.data.dataset, f"{model}Dataset"):
        raise UserError(f"model: {model} needs a data set of another kind than item histories; it is not supported")
    if model in _WITH_LABELS:
        raise UserError(f"model: {model} learns from labels, which histories do not have; it is not supported")
    return SequenceDataset(config)


def data_preparation(config: Any, dataset: SequenceDataset) -> tuple[TrainLoader, EvalLoader, EvalLoader]:
    """Loaders for training, validation and test."""
    for phase, mode in config["eval_args"]["mode"].items():
        if mode != "full":
            raise UserError(f"eval_args: mode {mode!r} of {phase} is not supported; all items are ranked (mode: full)")
    if config["transform"] == "mask_itemseq":
        _check_masking(dataset)
    train, valid, test = dataset.build()
    sampler = _negative_sampler(config, dataset, [train, valid, test])
    return (
        _train_loader(config, train, sampler),
        EvalLoader(config, valid, None),
        EvalLoader(config, test, None),
    )


def _check_masking(dataset: SequenceDataset) -> None:
    """RecBole draws an item outside the history for every masked one, without end where there is none."""
    samples, n_items = dataset.inter_feat, dataset.item_num - 1
    if n_items > samples.max_length:
        return
    items = samples.flat.columns[dataset.iid_field].numpy()
    users = samples.flat.columns[dataset.uid_field].numpy()
    distinct = np.bincount(np.unique(users * np.int64(n_items + 1) + items) // (n_items + 1))
    start, stop = samples.ranges(np.flatnonzero(distinct[users[samples.targets]] == n_items))
    for first, target in zip(start, stop, strict=True):
        if target - first >= n_items and len(np.unique(items[first:target])) == n_items:
            user = dataset.id2token(dataset.uid_field, users[target])
            raise UserError(
                f"transform: mask_itemseq needs an item outside each history, and a history of user {user} has all "
                f"{n_items} that there are; take a MAX_ITEM_LIST_LENGTH below {n_items} or more items"
            )


def _train_loader(config: Any, train: SequenceDataset, sampler: Any) -> TrainLoader:
    if config["train_mode"] != "sequence":
        return TrainLoader(config, train, sampler, shuffle=config["shuffle"])
    if not getattr(config.model_class, "causal", False):
        raise UserError(
            "train_mode: sequence scores every position of a history in one pass, for which a position may not see the "
            f"items after it, as in Mamba4Rec or RecMamba; for {config.model} write train_mode: prefix"
        )
    return WindowLoader(config, train.copy(Windows(train.inter_feat)), sampler, shuffle=config["shuffle"])


def _negative_sampler(config: Any, dataset: SequenceDataset, parts: list[SequenceDataset]) -> Any:
    """What draws negatives in training: None, ours, or RecBole's for what ours does not cover."""
    distribution = config["train_neg_sample_args"]["distribution"]
    if distribution == "none":
        return None
    if dataset.item_num < 3:
        raise UserError("train_neg_sample_args: the data has one item only, so that none is left as a negative")
    if distribution == "uniform" and config["repeatable"]:
        return UniformNegatives(dataset.item_num)
    return create_samplers(config, dataset, parts)[0]
