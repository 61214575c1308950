"""From a Config to a data set and its three loaders; RecBole's functions of the same names, without their pickles."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import recbole.data.dataset
from recbole.data.utils import create_samplers
from recbole.utils import ModelType

from recbole_sigma.data.dataset import SequenceDataset
from recbole_sigma.data.loaders import EvalLoader, SampledItems, TrainLoader, UniformNegatives, WindowLoader
from recbole_sigma.data.splits import check_split, has_samples
from recbole_sigma.data.windows import Windows
from recbole_sigma.errors import UserError

_WITH_LABELS = ("DIN", "DIEN")  # RecBole's sequential models of clicks

logger = logging.getLogger(__name__)


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
    wanted = has_samples(config)
    for split, loader in {"training": data.train, "validation": data.valid, "test": data.test}.items():
        if wanted[split] and not len(loader.dataset):
            split_args, files = config["eval_args"]["split"], config["benchmark_filename"]
            why = f"by benchmark_filename {files}" if files else f"by eval_args, split: {split_args}"
            why = "no user has 4 or more interactions" if split_args == {"LS": "valid_and_test"} and not files else why
            raise UserError(f"{dataset.dataset_name}: the {split} split is empty: {why}")
        loader.shard(rank, size)
    sampled = {phase: mode for phase, mode in config["eval_args"]["mode"].items() if mode != "full"}
    if sampled:
        logger.warning(
            "eval_args, mode: %s: sampled metrics do not rank models reliably (Krichene and Rendle, KDD 2020), and "
            "cannot be compared with a ranking of all items; report mode: full",
            ", ".join(f"{phase} {mode}" for phase, mode in sampled.items()),
        )
    return data


def create_dataset(config: Any) -> SequenceDataset:
    """Read the data set that `config` names. Raises UserError for malformed files, unsupported protocols and models."""
    model = config["model"]
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or hasattr(recbole.data.dataset, f"{model}Dataset"):
        raise UserError(f"model: {model} needs a data set of another kind than item histories; it is not supported")
    if model in _WITH_LABELS:
        raise UserError(f"model: {model} learns from labels, which histories do not have; it is not supported")
    check_split(config)
    for setting in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
        if not config[setting]:
            raise UserError(f"{setting}: empty; name the column of the .inter file")
    return SequenceDataset(config)


def data_preparation(config: Any, dataset: SequenceDataset) -> tuple[TrainLoader, EvalLoader, EvalLoader]:
    """Loaders for training, validation and test."""
    if config["transform"] == "mask_itemseq" and config["train_mode"] != "sequence":
        _check_masking(dataset)
    splits = train, valid, test = dataset.build()
    distribution, negatives = config["train_neg_sample_args"]["distribution"], None
    if distribution != "none":
        if dataset.item_num < 3:
            raise UserError("train_neg_sample_args: the data has only one item, so that none is left as a negative")
        if distribution == "uniform":
            negatives = UniformNegatives(dataset.item_num)
        else:
            known = train if "time" in config["eval_args"]["split"] else dataset  # RecBole counts test items, too
            negatives = create_samplers(config, known, splits)[0]
    evaluated = (
        EvalLoader(config, valid, train, sampled_items(config, dataset, "valid")),
        EvalLoader(config, test, train, sampled_items(config, dataset, "test")),
    )
    by_prefix = config["train_mode"] != "sequence" or getattr(config.model_class, "fits_at_once", False)
    if by_prefix or not len(train):  # without a sample, which `load` refuses, there is no window
        return TrainLoader(config, train, negatives, shuffle=config["shuffle"]), *evaluated
    problem = getattr(config.model_class, "sequence_problem", lambda config: "it is RecBole's own class")(config)
    if problem:
        raise UserError(
            f"train_mode: sequence reads a history once for all its targets; {config.model} cannot, because "
            f"{problem}: write train_mode: prefix"
        )
    if negatives is not None and config["train_neg_sample_args"]["sample_num"] != 1:
        raise UserError("train_neg_sample_args: train_mode: sequence takes sample_num: 1")
    windows = Windows(train.inter_feat, config["window_step"])
    if windows.step > 1 and windows.cut:
        logger.info(
            "train_mode sequence: %s histories are longer than MAX_ITEM_LIST_LENGTH %d; each is read in windows of %d "
            "more targets, which see at least %d items (window_step: 1 shows each target all %d, at more cost)",
            f"{windows.cut:,}", config["MAX_ITEM_LIST_LENGTH"], windows.step,
            config["MAX_ITEM_LIST_LENGTH"] - windows.step + 1, config["MAX_ITEM_LIST_LENGTH"],
        )  # fmt: skip
    return WindowLoader(config, train.copy(windows), negatives, shuffle=config["shuffle"]), *evaluated


def sampled_items(config: Any, dataset: SequenceDataset, phase: str) -> SampledItems | None:
    """What a target is ranked among with `mode: uni100` or `pop100`; None with `mode: full`."""
    mode = config["eval_args"]["mode"][phase]
    if mode == "full":
        return None
    weights = np.ones(dataset.item_num, dtype=np.int64)
    if mode.startswith("pop"):  # as RecBole: how often each item is a target, in all splits
        weights = np.bincount(dataset.inter_feat[dataset.iid_field].numpy(), minlength=dataset.item_num)
    weights[0] = 0  # padding
    if np.count_nonzero(weights) < 2:
        raise UserError(f"eval_args: mode {mode} of {phase} needs at least two items to draw from; write mode: full")
    return SampledItems(weights, int(mode[3:]), (config["seed"], ("valid", "test").index(phase)))


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
