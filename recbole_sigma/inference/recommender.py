"""Recommender: a run's model without its data set, for histories of any users."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.config.schema import identity
from recbole_sigma.environment import no_gpu
from recbole_sigma.errors import UserError, did_you_mean, one_line
from recbole_sigma.inference.frames import frame_of, histories_of, is_frame
from recbole_sigma.inference.session import Session
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.moving_average import MovingAverages
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.registry import source_digest
from recbole_sigma.runs.files import digest
from recbole_sigma.runs.reader import LoadedModel, load_model

ROWS_TOGETHER = 2048  # histories that are encoded together
SCORES_TOGETHER = 2**25  # scores held at once, 128 MB in float32

OnUnknown = Literal["skip", "error"]
logger = logging.getLogger(__name__)


@dataclass(repr=False, eq=False)
class Recommendations(list[list[tuple[str, float]]]):
    """A list of `(item, score)` per history, best first; `score` is the count in training where the history is empty.

    `unknown`: how many item ids of the histories and candidates the model does not know; `popular`: the numbers of the
    histories without a known item, which have the most popular items.
    """

    unknown: int = 0
    popular: list[int] = field(default_factory=list)


class Recommender:
    """Recommends with the model of one run. Items are named by their ids in the data, as text or numbers."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.model: Any = loaded.model.requires_grad_(False)
        self.config = loaded.config
        self.items = loaded.items[1:]  # ids by number - 1
        self.titles = loaded.titles  # by id, where the data has them
        self.max_length: int = self.config["MAX_ITEM_LIST_LENGTH"]
        self._names = np.array(loaded.items, dtype=object)
        self._numbers = {item: number for number, item in enumerate(self.items, 1)}
        self.counts = torch.tensor(loaded.counts, dtype=torch.float32)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, model: str | type | None = None) -> "Recommender":
        """The model of a run directory, with the weights of its best epoch; the data set is not needed.

        Args:
            device: `cpu`, `cuda` or `cuda:1`; None: the GPU if the run's settings allow one and there is one.
            model: confirms the name of a class that is not part of this package, or is the class.

        Raises UserError for a directory that holds no such model, and for a device that is not there.
        """
        kind, _, number = (device or "").partition(":")
        if kind not in ("", "cpu", "cuda") or (number and not number.isdecimal()):
            raise UserError(f"device must be cpu, cuda or cuda:NUMBER, got {device!r}")
        if kind == "cuda" and (reason := no_gpu()):
            raise UserError(f"device: {device!r} cannot be used: {reason}")
        settings: dict[str, Any] = {"nproc": 1, "gpu_id": number or "0"}
        if kind:
            settings["use_gpu"] = kind == "cuda"
        recommender = cls(load_model(folder, model=model, **settings))
        try:
            if any(isinstance(module, (Mamba, MovingAverages)) for module in recommender.model.modules()):
                active_backend(recommender.device)
        except CudaExtensionError as error:
            raise UserError(one_line(error)) from None
        return recommender

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.config["device"]
        return device

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Iterable[Any] | None = None,
        on_unknown: OnUnknown = "skip",
    ) -> Any:
        """The k best items for each history, oldest item first; of any length, as many as there are.

        Args:
            histories: lists of item ids; or a table (pandas, polars) with the columns user_id and item_id, a row per
                interaction, in time order or with the data's column of time.
            exclude_seen: leave the items of a history out of its list.
            candidates: the only items that may be recommended; None: all.
            on_unknown: `skip` ids that the model does not know, and count them; or raise an `error`.

        Returns Recommendations, or for a table one with the columns user_id, item_id, score, rank. A history without a
        known item gets the most popular items of training, and a warning says so. Raises UserError.
        """
        _check_k(k)
        if is_frame(histories):
            names = [self.config[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
            users, lists = histories_of(histories, *names)
            return frame_of(histories, users, self.recommend(lists, k, exclude_seen, candidates, on_unknown), names[:2])
        (*rows, chosen), unknown = self.numbers([*histories, () if candidates is None else candidates], on_unknown)
        result = Recommendations(unknown=unknown, popular=[row for row, items in enumerate(rows) if not len(items)])
        columns = None if candidates is None else np.unique(chosen)
        for part in self._slices(len(rows)):
            result.extend(self.best(self.scores(rows[part]), rows[part], k, exclude_seen, columns))
        if result.popular:
            logger.warning("%d of %d histories have no known item: most popular items", len(result.popular), len(rows))
        return result

    def score(self, history: Iterable[Any], items: Iterable[Any], on_unknown: OnUnknown = "skip") -> list[float]:
        """The scores of `items` after one history. Raises UserError for an unknown one of `items`."""
        rows, _ = self.numbers([history], on_unknown)
        wanted, _ = self.numbers([items], "error")
        scores: list[float] = self.scores(rows)[0, wanted[0]].tolist()
        return scores

    def session(self, history: Iterable[Any] = (), on_unknown: OnUnknown = "skip") -> Session:
        """A history that grows item by item, and its recommendations."""
        session = Session(self)
        session.extend(history, on_unknown)
        return session

    def restore_session(self, state: bytes) -> Session:
        """The session that `Session.to_bytes` saved. Raises UserError for another model's state, and a damaged one."""
        return Session.from_bytes(self, state)

    def item_embeddings(self) -> np.ndarray:
        """The item embeddings (n, D), in the order of `items`. Raises UserError for a model without such a table."""
        table = getattr(self.model, "item_embedding", None)
        if not isinstance(table, torch.nn.Embedding):
            raise UserError(f"model: {self.config.model} has no table of item embeddings")
        embeddings: np.ndarray = table.weight[1 : len(self._names)].cpu().numpy()  # BERT4Rec has a mask after the items
        return embeddings

    def similar_items(self, item: Any, k: int = 10) -> list[tuple[str, float]]:
        """The k other items with the most similar embeddings, by cosine. Raises UserError for an unknown item."""
        ((own,),), _ = self.numbers([[item]], "error")
        table = torch.nn.functional.normalize(torch.from_numpy(self.item_embeddings()), dim=1)
        cosines = torch.cat([torch.tensor([-torch.inf]), table @ table[own - 1]])
        return self.best(cosines[None], [np.array([own])], k, exclude_seen=True)[0]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of weights, settings and vocabulary, in hexadecimal: what a session's state belongs to."""
        weights, settings = (dict(sorted(each.items())) for each in (self.model.state_dict(), self.config.settings()))
        return digest([weights, identity(settings), source_digest(self.config.model_class), self.items])

    @cached_property
    def stepping_model(self) -> Any:
        """The model, on the CPU, if its `step` updates a session's state item by item; None if it has to read again."""
        if not getattr(self.model, "streams", False):
            return None
        return self.model if self.device.type == "cpu" else deepcopy(self.model).cpu()

    def number(self, item: Any) -> int:
        """The number of an item, 0 if the model does not know it. 50.0 is also 50, as whole numbers are in data."""
        known = self._numbers.get(str(item), 0)
        if not known and isinstance(item, float) and item.is_integer():
            return self._numbers.get(str(int(item)), 0)
        return known

    def numbers(self, histories: Iterable[Iterable[Any]], on_unknown: OnUnknown) -> tuple[list[np.ndarray], int]:
        """Item numbers of each history, (n,) int64 each, and how many ids are unknown; UserError for `error`."""
        if on_unknown not in ("skip", "error"):
            raise UserError(f"on_unknown must be skip or error, got {on_unknown!r}")
        rows: list[np.ndarray] = []
        unknown: dict[str, int] = {}
        for history in histories:
            if isinstance(history, str | bytes) or not isinstance(history, Iterable):
                right = "a list of item ids, such as ['A', 'B'] (several histories: [['A', 'B']])"
                raise UserError(f"expected {right}, got {history!r}")
            ids = [*history]
            row = np.fromiter((self._numbers.get(str(item), 0) for item in ids), np.int64, len(ids))
            if not row.all():
                for position in np.flatnonzero(row == 0):
                    row[position] = self.number(ids[position])
                    if not row[position]:
                        unknown[str(ids[position])] = unknown.get(str(ids[position]), 0) + 1
                row = row[row > 0]
            rows.append(row)
        if unknown:
            first = next(iter(unknown))
            message = f"{sum(unknown.values())} item ids are unknown to the model, such as {first!r}"
            if on_unknown == "error":
                raise UserError(message + did_you_mean(first, self.items[:10_000]))
            logger.warning("%s; they are skipped", message)
        return rows, sum(unknown.values())

    @torch.inference_mode()
    def scores(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Scores of all items on the CPU: histories (n,) of item numbers -> (B, V), -inf for the padding item.

        They are those of evaluation: the last `max_length` items count. Without an item, the counts in training.
        Raises UserError for scores that are NaN or infinite, and for a model that needs more than histories.
        """
        scores = torch.zeros(len(rows), len(self._names))
        full = [number for number, row in enumerate(rows) if len(row)]
        if len(full) < len(rows):
            if not len(self.counts):
                raise UserError("a history without a known item: this run has no item_info.json with popular items")
            scores[:] = self.counts
        if full:
            scores[full] = self._model_scores([rows[number] for number in full])
        scores[:, 0] = -torch.inf
        return scores

    @torch.inference_mode()
    def best(
        self, scores: Tensor, rows: Sequence[np.ndarray], k: int, exclude_seen: bool, columns: np.ndarray | None = None
    ) -> list[list[tuple[str, float]]]:
        """The k items with the highest `scores` (B, V), without those of `rows` if `exclude_seen`; changes `scores`."""
        _check_k(k)
        if exclude_seen:
            row = np.repeat(np.arange(len(rows)), [len(seen) for seen in rows])
            seen = np.concatenate([*rows, np.empty(0, np.int64)])
            scores[torch.from_numpy(row), torch.from_numpy(seen)] = -torch.inf
        if columns is not None:
            scores = scores[:, torch.from_numpy(columns)]
        values, numbers = scores.topk(min(k, scores.shape[1]))
        names = self._names[numbers.numpy() if columns is None else columns[numbers.numpy()]]
        return [
            [(item, score) for item, score in zip(row, own, strict=True) if score > -torch.inf]
            for row, own in zip(names.tolist(), values.tolist(), strict=True)
        ]

    def _model_scores(self, rows: Sequence[np.ndarray]) -> Tensor:
        """(B, V) by the model, for histories that are not empty."""
        rows = [row[-self.max_length :] for row in rows]
        lengths = np.array([len(row) for row in rows])
        width = lengths.max() if getattr(self.model, "accepts_any_length", False) else self.max_length
        padded = np.zeros((len(rows), width), np.int64)
        padded[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
        fields = {self.model.ITEM_SEQ: torch.from_numpy(padded), self.model.ITEM_SEQ_LEN: torch.from_numpy(lengths)}
        try:
            scores: Tensor = self.model.full_sort_predict(Interaction(fields).to(self.device))
        except KeyError as error:
            needs = f"{self.config.model} needs {error} of each row, beside the items of a history"
            raise UserError(f"model: {needs}; it cannot recommend without its data set") from None
        scores = scores.view(len(rows), -1)[:, : len(self._names)].cpu()
        if not (scores[:, 1:].sum().isfinite() or scores[:, 1:].isfinite().all()):  # the sum takes a tenth of the time
            raise UserError("the model's scores are NaN or infinite")
        return scores

    def _slices(self, n: int) -> Iterator[slice]:
        step = max(min(ROWS_TOGETHER, SCORES_TOGETHER // len(self._names)), 1)
        return (slice(start, start + step) for start in range(0, n, step))


def _check_k(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise UserError(f"k must be a whole number from 1 on, got {k!r}")
