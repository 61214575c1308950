"""What the models of several runs would show one user (SIGMA, Figure 6): history, flipped history, top-k lists."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import FeatureType
from tabulate import tabulate

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.data.atomic import AtomicFormat, read_atomic
from recbole_sigma.data.loaders import Batch, EvalLoader
from recbole_sigma.errors import UserError, did_you_mean
from recbole_sigma.evaluation.ranks import target_ranks
from recbole_sigma.experiment.spec import Planned
from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.reader import RecordedRun

_TITLES = ("title", "name")  # how the column of titles ends, in a data set's .item file
_LONGEST_LIST = 1000  # known users to look for the nearest name among


@dataclass(frozen=True)
class TopList:
    """What one run's model puts first. `flipped` is the history as its flipped branch sees it, if it has one."""

    label: str
    seed: int
    items: tuple[str, ...]
    target_rank: float
    flipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseStudy:
    """One user of one data set, at the test item.

    Attributes:
        history: items before the target, oldest first, as many as the models see.
        history_length: all of them.
        titles: by item, where the data has them.
    """

    dataset: str
    user: str
    history: tuple[str, ...]
    history_length: int
    target: str
    lists: tuple[TopList, ...]
    titles: Mapping[str, str] = field(default_factory=dict, repr=False)

    def title(self, item: str) -> str:
        """The item's title, or its id."""
        return self.titles.get(item, item)

    @property
    def flipped(self) -> dict[tuple[str, ...], list[str]]:
        """Flipped histories and the labels of the runs that see them."""
        found: dict[tuple[str, ...], list[str]] = {}
        for each in self.lists:
            if each.flipped:
                found.setdefault(each.flipped, []).append(each.label)
        return found

    def text(self, columns: int) -> str:
        """For a terminal of so many columns."""
        width = max((columns - 5) // max(len(self.lists), 1) - 2, 4)
        lines = [f"user {self.user} of {self.dataset}"]
        shown = [(f"history, last {len(self.history)} of {self.history_length}", self.history)]
        shown += [(f"flipped, {', '.join(labels)}", items) for items, labels in self.flipped.items()]
        for what, items in (*shown, ("next", (self.target,))):
            lines += textwrap.wrap(f"{what}: {' · '.join(map(self.title, items))}", columns, subsequent_indent="  ")
        rows = [
            [str(place), *(self._shown(item, width) for item in items)]
            for place, items in enumerate(zip(*(each.items for each in self.lists), strict=True), 1)
        ]
        rows.append(["rank", *(f"{each.target_rank:g}" for each in self.lists)])
        headers = ["", *(textwrap.shorten(each.label, width, placeholder="…") for each in self.lists)]
        return "\n".join([*lines, "", tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True)])

    def _shown(self, item: str, width: int) -> str:
        title = self.title(item)
        mark = "→" if item == self.target else ""
        return mark + (title if len(title) < width else f"{title[: width - 2]}…")


def case_study(runs: Sequence[RecordedRun], user: str, k: int = 10) -> CaseStudy:
    """The lists of each arm's first complete run on one data set; model and data are made again from the run's folder.

    Raises UserError for a user that is not tested, for data that is not the runs', and where there is no run.
    """
    first: dict[str, RecordedRun] = {}
    for run in sorted((run for run in runs if run.complete), key=lambda run: run.seed):
        first.setdefault(run.label, run)
    chosen = [first[label] for label in dict.fromkeys(run.label for run in runs) if label in first]
    if not chosen:
        raise UserError(f"case study of user {user}: there is no complete run")
    seen = [_Seen.by(run, user, k) for run in chosen]
    longest = max(seen, key=lambda each: len(each.history))
    return CaseStudy(
        dataset=chosen[0].dataset,
        user=user,
        history=longest.history,
        history_length=longest.history_length,
        target=longest.target,
        lists=tuple(each.list for each in seen),
        titles=longest.titles,
    )


@dataclass(frozen=True)
class _Seen:
    """One run's part of a case study."""

    history: tuple[str, ...]
    history_length: int
    target: str
    list: TopList
    titles: dict[str, str]

    @classmethod
    def by(cls, run: RecordedRun, user: str, k: int) -> "_Seen":
        config, network, loader = _made_again(run)
        row = _row_of(loader.dataset, user)
        batch = loader.collate_fn(Batch(0, 0, np.array([row])))
        assert batch is not None
        interaction, _, _, target = batch
        interaction = interaction.to(config["device"])
        with torch.no_grad():
            scores = network.full_sort_predict(interaction).view(1, -1)
        best = scores[0, 1:].topk(min(k, scores.shape[1] - 1)).indices + 1
        tokens = loader.dataset.field2id_token[loader.dataset.iid_field].astype(str)
        items = interaction[network.ITEM_SEQ][0, : int(interaction[network.ITEM_SEQ_LEN][0])].cpu()
        ranked = TopList(
            label=run.label,
            seed=run.seed,
            items=_named(tokens, best),
            target_rank=float(target_ranks(scores, target.to(scores.device))[0]),
            flipped=_named(tokens, _flipped(config, items)) if _flips(config) else (),
        )
        length = int(loader.dataset.history_lengths(np.array([row]))[0])
        return cls(_named(tokens, items), length, str(tokens[int(target[0])]), ranked, _titles(loader.dataset))


def check_user(runs: Sequence[Planned], user: str) -> None:
    """Raises UserError for a user who is not in the test data of all of the planned runs' data sets."""
    for planned in {planned.dataset: planned for planned in runs}.values():
        _, _, test = data_preparation(planned.config, create_dataset(planned.config))
        _row_of(test.dataset, user)


def _made_again(run: RecordedRun) -> tuple[Config, Any, EvalLoader]:
    """A run's settings, its model with the best epoch's weights, and its test data; all on the CPU."""
    assert run.folder is not None
    folder = RunFolder(run.folder, lock=False)
    here = {"use_gpu": False, "show_progress": False, "nproc": 1}
    config = Config(run.model, run.dataset, config_files=[run.folder / "config.yaml"], settings=here)
    data = create_dataset(config)
    if data.checksum() != run.result["dataset"].get("sha256"):
        raise UserError(f"{run.folder}: {run.dataset}.inter is not the file that the run was trained on")
    tokens = data.field2id_token[data.iid_field].astype(str).tolist()
    if folder.read_json("items.json", list) != tokens:
        raise UserError(f"{run.folder / 'items.json'}: is not of the data's items")
    train, _, test = data_preparation(config, data)
    network = config.model_class(config, train.dataset).to(config["device"])
    try:
        network.load_state_dict(folder.load_weights())
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise UserError(f"{folder.weights}: not the weights of {run.model} as it is now: {first}") from None
    network.eval()
    return config, network, test


def _named(tokens: np.ndarray, items: torch.Tensor) -> tuple[str, ...]:
    """Items by their ids in the data."""
    return tuple(tokens[items.cpu().numpy()].tolist())


def _row_of(dataset: Any, user: str) -> int:
    """The user's place in the test data."""
    users = dataset.field2id_token[dataset.uid_field].astype(str)[dataset.inter_feat[dataset.uid_field].numpy()]
    rows = np.flatnonzero(users == user)
    if not len(rows):
        hint = did_you_mean(user, users[:_LONGEST_LIST].tolist())
        raise UserError(f"case study: {dataset.dataset_name} has no user {user!r} on test{hint}")
    return int(rows[0])


def _flips(config: Config) -> bool:
    return config.model == "SIGMA" and bool(config["partial_flip"])


def _flipped(config: Config, items: torch.Tensor) -> torch.Tensor:
    """(n,) -> (up to n,): a history as the flipped branch sees it; items that `flip: padded` moves away are gone."""
    slots = config["MAX_ITEM_LIST_LENGTH"] if config["flip"] == "padded" else None
    flipped = PartialFlip(config["r"], slots)(items[None, :, None].double(), torch.tensor([len(items)]))
    return flipped[0, :, 0].long()[flipped[0, :, 0] > 0]


def _titles(dataset: Any) -> dict[str, str]:
    """Titles of items from the data set's .item file; none if there is no such file or column."""
    file = Path(dataset.dataset_path, f"{dataset.dataset_name}.item")
    if not file.is_file():
        return {}
    item = dataset.iid_field
    form = AtomicFormat({item: "ITEM_ID_FIELD"})
    table = read_atomic(file, form, lambda name: name == item or name.lower().endswith(_TITLES))
    text = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
    named = [name for name, kind in table.types.items() if name != item and kind in text]
    if not named:
        return {}
    both = zip(table.frame[item].astype(str), table.frame[named[0]].fillna("").astype(str), strict=True)
    return {token: title for token, title in both if title}
