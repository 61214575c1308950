"""What the models of several runs recommend to one user (SIGMA, Figure 6): history, flipped history, top-k lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from recbole_sigma.data.item_info import titles_of
from recbole_sigma.data.loaders import Batch
from recbole_sigma.errors import UserError, did_you_mean
from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.runs.reader import RecordedRun, load_run


@dataclass(frozen=True)
class TopList:
    """The first items of one run's model. `flipped` is the history as its flipped branch sees it, if it has one."""

    label: str
    seed: int
    items: list[str]
    target_rank: float
    flipped: list[str]


@dataclass(frozen=True)
class CaseStudy:
    """One user of one data set, at the test item."""

    dataset: str
    user: str
    history: list[str]  # the last items before the target, oldest first, as many as the models see
    history_length: int  # of all items before the target
    target: str
    lists: list[TopList]
    titles: Mapping[str, str] = field(repr=False)  # by item, where the data has them

    def title(self, item: str) -> str:
        """The item's title, or its id."""
        return self.titles.get(item, item)


def case_study(runs: Sequence[RecordedRun], user: str, k: int = 10) -> CaseStudy:
    """The top-k lists of each label's first finished run, on CPU; UserError for no run, untested user, other data."""
    chosen: dict[str, RecordedRun] = {}
    for run in runs:
        if run.complete:
            chosen.setdefault(run.label, run)
    if not chosen:
        raise UserError(f"case study of user {user}: there is no finished run")
    lists: list[TopList] = []
    history: list[str] = []
    for run in chosen.values():
        loaded = load_run(run.folder or "", use_gpu=False, show_progress=False, nproc=1)
        config, data = loaded.config, loaded.test.dataset
        names = data.field2id_token[data.iid_field].astype(str)
        row = _row_of(data, user)
        interaction, _, _, targets = loaded.test.collate_fn(Batch(0, 0, np.array([row])))
        with torch.no_grad():
            scores = loaded.model.full_sort_predict(interaction).view(1, -1)
        if config["mask_seen"]:
            scores = scores.scatter(1, data.inter_feat.seen(np.array([row])), -torch.inf)
        length, ranks = int(data.history_lengths(np.array([row]))[0]), run.ranks("test")
        rank = ranks.rank[(ranks.user == user) & (ranks.history_length == length)][0]
        best = names[1:][scores[0, 1:].topk(min(k, scores.shape[1] - 1)).indices].tolist()
        items = interaction[loaded.model.ITEM_SEQ][0, : int(interaction[loaded.model.ITEM_SEQ_LEN][0])]
        flipped: list[str] = []
        if config.model == "SIGMA" and config["mamba"] and config["partial_flip"] and not config["flip_ranges"]:
            slots = config["MAX_ITEM_LIST_LENGTH"] if config["flip"] == "padded" else None
            order = PartialFlip(config["r"], slots)(items[None, :, None], torch.tensor([len(items)]))[0, :, 0]
            flipped = names[order[order > 0]].tolist()  # `padded` moves items of short histories away
        lists.append(TopList(run.label, run.seed, best, float(rank), flipped))
        history = max(history, names[items].tolist(), key=len)
    return CaseStudy(run.dataset, user, history, length, names[targets[0]], lists, titles_of(data))


def check_user(datasets: Mapping[str, Any], user: str) -> None:
    """Raise UserError for a user who is not in all test data sets, by name."""
    for data in datasets.values():
        _row_of(data, user)


def _row_of(dataset: Any, user: str) -> int:
    """The user's row in the test data, of several the last: the one with the longest history."""
    users = dataset.field2id_token[dataset.uid_field].astype(str)[dataset.inter_feat[dataset.uid_field].numpy()]
    rows = np.flatnonzero(users == user)
    if not len(rows):
        hint = did_you_mean(user, users[:1000].tolist())  # of more it would take long
        raise UserError(f"case study: {dataset.dataset_name} has no user {user!r} on test{hint}")
    return int(rows[np.argmax(dataset.history_lengths(rows))])
