"""Live sessions: a history that grows item by item. Where the model streams, an item costs one step, not a pass."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs.files import digest

if TYPE_CHECKING:
    from recbole_sigma.inference.recommender import OnUnknown, Recommender

FORMAT = 1  # of saved sessions; counts up when their content changes


class Session:
    """One history and its recommendations; `Recommender.session` makes it. docs/serving.md says what an item costs.

    A model that streams reads the history without a limit, also beyond MAX_ITEM_LIST_LENGTH; one that does not reads
    the last MAX_ITEM_LIST_LENGTH items again for each list.
    """

    def __init__(self, recommender: "Recommender") -> None:
        self._recommender = recommender
        self._model = recommender.stepping_model
        self._seen = array("q")  # item numbers
        self._state: Any = self._model.start() if self._model else {}
        self._representation: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def streams(self) -> bool:
        """Whether an item costs one step."""
        return self._model is not None

    @property
    def history(self) -> list[str]:
        """The known items so far, oldest first."""
        return [self._recommender.items[number - 1] for number in self._seen]

    def append(self, item: Any, on_unknown: "OnUnknown" = "skip") -> bool:
        """Add the newest item; False if the model does not know it, which is then skipped (or UserError)."""
        number = self._recommender.number(item)
        if not number:
            return self.extend([item], on_unknown) == 0  # which says so
        self._read(number)
        return True

    def extend(self, items: Iterable[Any], on_unknown: "OnUnknown" = "skip") -> int:
        """Add items, oldest first; how many of them are unknown and were skipped."""
        (numbers,), unknown = self._recommender.numbers([items], on_unknown)
        for number in numbers.tolist():
            self._read(number)
        return unknown

    def _read(self, number: int) -> None:
        if self._model is not None:
            with torch.inference_mode():
                self._representation = self._model.step(number, len(self._seen), self._state)
        self._seen.append(number)

    def top_k(self, k: int = 10, exclude_seen: bool = True) -> list[tuple[str, float]]:
        """The k best items and their scores, best first; the most popular ones for an empty history."""
        seen = np.array(self._seen, np.int64)
        return self._recommender.best(self._scores(seen), [seen], k, exclude_seen)[0]

    def _scores(self, seen: np.ndarray) -> Tensor:
        """Scores of all items after the items `seen`: (n,) -> (1, V)"""
        if self._representation is None or self._model is None:
            return self._recommender.scores([seen])
        with torch.inference_mode():
            scores: Tensor = self._model.score_all(torch.from_numpy(self._representation)[None])
            if getattr(self._model, "corrects_scores", False):
                scores = self._model.correct(scores, torch.from_numpy(seen)[None], torch.tensor([len(seen)]))
            scores[:, 0] = -torch.inf
        return scores

    def to_bytes(self) -> bytes:
        """The session as safetensors, for `Recommender.restore_session` with the same model, here or elsewhere."""
        tensors = {f"state.{name}": torch.from_numpy(array) for name, array in _flat(self._state)}
        tensors["seen"] = torch.from_numpy(np.array(self._seen, np.int64))
        if self._representation is not None:
            tensors["representation"] = torch.from_numpy(self._representation)
        own = digest(dict(sorted(tensors.items())))
        labels = {"format": FORMAT, "model": self._recommender.checksum, "digest": own}
        for name, value in labels.items():
            tensors[name] = torch.tensor(list(str(value).encode()), dtype=torch.uint8)
        return save(tensors)

    @classmethod
    def from_bytes(cls, recommender: "Recommender", content: bytes) -> "Session":
        """`Recommender.restore_session`"""
        try:
            tensors = load(content)
            labels = {name: bytes(tensors.pop(name).tolist()).decode() for name in ("format", "model", "digest")}
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"session: not a saved session: {one_line(error)}") from None
        if labels["format"] != str(FORMAT):
            raise UserError(f"session: saved in format {labels['format']} by another version; this one reads {FORMAT}")
        if labels["model"] != recommender.checksum:
            raise UserError("session: saved by another model; start it again from its history")
        if labels["digest"] != digest(dict(sorted(tensors.items()))):
            raise UserError("session: damaged: its content is not what was saved")
        session = cls(recommender)
        session._load({name: tensor.numpy() for name, tensor in tensors.items()})
        return session

    def _load(self, saved: dict[str, np.ndarray]) -> None:
        """Take over arrays whose names and shapes are those of this model's states. Raises UserError."""
        state, seen = dict(_flat(self._state)), saved.pop("seen", np.zeros(1))
        self._representation = saved.pop("representation", None)
        right = {f"state.{name}" for name in state} == {*saved} and seen.dtype == np.int64 and seen.ndim == 1
        right = right and bool(((seen > 0) & (seen <= len(self._recommender.items))).all())
        if self._model is not None and len(seen):
            with torch.inference_mode():
                expected = self._model.step(1, 0, self._model.start())
            right = right and getattr(self._representation, "shape", ()) == expected.shape
        for name, start in state.items() if right else ():
            own = saved[f"state.{name}"]
            rows = {len(start), len(own)} if len(start) == 0 else {len(start)}  # an empty one grows with the history
            right &= own.dtype == start.dtype and own.shape[1:] == start.shape[1:] and len(own) in rows
        if not right:
            raise UserError("session: damaged: not the state of this model")
        self._seen = array("q", seen.tolist())
        for name in state:
            *path, last = name.split(".")
            inner = self._state
            for key in path:
                inner = inner[key]
            inner[last] = saved[f"state.{name}"].copy()  # memory of our own, which the kernels may write to


def _flat(state: dict[str, Any], prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """The arrays of a nested state by their path: `0.mamba.scan`."""
    pairs: list[tuple[str, np.ndarray]] = []
    for name, value in state.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs
