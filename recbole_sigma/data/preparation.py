"""From a Config to a data set and its three loaders; RecBole's functions of the same names, without their pickles."""

from dataclasses import dataclass
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
_SPLITS = ("valid_and_test", "valid_only", "test_only")


@dataclass(frozen=True)
class Data:
    """A data set and the loaders of its three splits."""

    dataset: SequenceDataset
    train: TrainLoader
    valid: EvalLoader
    test: EvalLoader


def load(config: Any, rank: int = 0, size: int = 1) -> Data:
    """The data of a run: of each batch, the shard of process `rank` of `size`. UserError for wrong data or settings."""
    dataset = create_dataset(config)
    data = Data(dataset, *data_preparation(config, dataset))
    mode = config["eval_args"]["split"]["LS"]
    for split, loader in {"training": data.train, "validation": data.valid, "test": data.test}.items():
        if not len(loader.dataset):
            why = "no user has 4 or more interactions"
            if mode != "valid_and_test":
                why = f"eval_args has the split LS: {mode}; write LS: valid_and_test"
            raise UserError(f"{dataset.dataset_name}: the {split} split is empty: {why}")
        loader.shard(rank, size)
    return data


def create_dataset(config: Any) -> SequenceDataset:
    """Read the data set that `config` names. Raises UserError for malformed files, unsupported protocols and models."""
    model, protocol = config["model"], config["eval_args"]
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or hasattr(recbole.data.dataset, f"{model}Dataset"):
        raise UserError(f"model: {model} needs a data set of another kind than item histories; it is not supported")
    if model in _WITH_LABELS:
        raise UserError(f"model: {model} learns from labels, which histories do not have; it is not supported")
    if not isinstance(protocol["split"], dict) or protocol["split"].get("LS") not in _SPLITS:
        raise UserError(f"eval_args: split {protocol['split']} is not supported; write {{'LS': 'valid_and_test'}}")
    if protocol["order"] != "TO":
        raise UserError(f"eval_args: order {protocol['order']!r} is not supported; histories need TO (time order)")
    for phase, mode in protocol["mode"].items():
        if mode != "full":
            raise UserError(f"eval_args: mode {mode!r} of {phase} is not supported; all items are ranked (mode: full)")
    for setting in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
        if not config[setting]:
            raise UserError(f"{setting}: empty; name the column of the .inter file")
    return SequenceDataset(config)


def data_preparation(config: Any, dataset: SequenceDataset) -> tuple[TrainLoader, EvalLoader, EvalLoader]:
    """Loaders for training, validation and test."""
    if config["transform"] == "mask_itemseq":
        _check_masking(dataset)
    splits = train, valid, test = dataset.build()
    distribution, negatives = config["train_neg_sample_args"]["distribution"], None
    if distribution != "none":
        if dataset.item_num < 3:
            raise UserError("train_neg_sample_args: the data has only one item, so that none is left as a negative")
        if distribution == "uniform" and config["repeatable"]:
            negatives = UniformNegatives(dataset.item_num)
        else:
            negatives = create_samplers(config, dataset, splits)[0]
    evaluated = EvalLoader(config, valid, None), EvalLoader(config, test, None)
    if config["train_mode"] != "sequence":
        return TrainLoader(config, train, negatives, shuffle=config["shuffle"]), *evaluated
    problem = getattr(config.model_class, "one_pass_problem", lambda config: "it is RecBole's own class")(config)
    if problem:
        raise UserError(
            f"train_mode: sequence scores all prefixes of a history in one pass; {config.model} cannot, because "
            f"{problem}: write train_mode: prefix"
        )
    if negatives is not None and config["train_neg_sample_args"]["sample_num"] != 1:
        raise UserError("train_neg_sample_args: train_mode: sequence takes sample_num: 1")
    windows = train.copy(Windows(train.inter_feat, config["window_step"]))
    return WindowLoader(config, windows, negatives, shuffle=config["shuffle"]), *evaluated


def _check_masking(dataset: SequenceDataset) -> None:
    """RecBole draws an item outside the history for every masked item, and never stops if there is none."""
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
                f"{n_items} items; set MAX_ITEM_LIST_LENGTH below {n_items} or use data with more items"
            )
