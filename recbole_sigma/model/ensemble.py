"""Ensemble: trained runs as one model, by the mean of their scores."""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.fitted import FittedModel
from recbole_sigma.model.one_pass import OnePass
from recbole_sigma.ops.step import Array


class Ensemble(OnePass, FittedModel):
    """The softmax of mean scores is the geometric mean of the members' softmaxes: a product of experts (Hinton, 2002).

    The members' scores are dot products, and so is their mean, of as many numbers per item as all have together.
    """

    members: Any  # nn.ModuleList; training/ensemble.py loads their weights

    def __init__(self, config: Any, dataset: Any) -> None:
        """New members, as `member_settings` describe them. Raises UserError for members that do not fit."""
        super().__init__(config, dataset)
        members: list[Any] = []
        for own in config.members():
            if not issubclass(own.model_class, OnePass):
                raise UserError(f"members: {own.model}'s scores are no product of representations and items")
            if (length := own["MAX_ITEM_LIST_LENGTH"]) != config["MAX_ITEM_LIST_LENGTH"]:
                raise UserError(f"members: {own.model} reads {length} items; write MAX_ITEM_LIST_LENGTH: {length}")
            members.append(own.model_class(own, dataset))
        if not members:
            raise UserError("members: Ensemble needs run directories, as in --members=[RUN,RUN]")
        self.members = nn.ModuleList(members).requires_grad_(False)
        self._widths = [member.item_embedding.embedding_dim for member in members]

    def fit(self, samples: Any) -> None:
        """Nothing is fitted."""

    @classmethod
    def one_pass_problem(cls, config: Any) -> str | None:
        """Why some member cannot score all prefixes of a history at once; None if all can."""
        return next(filter(None, (own.model_class.one_pass_problem(own) for own in config.members())), None)

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories, the members' side by side: (B, L), (B,) -> (B, sum of D)"""
        return torch.cat([member(item_seq, lengths) for member in self.members], 1)

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """Representations of all prefixes of flat histories: (T,) -> (T, sum of D)"""
        return torch.cat([member.encode_prefixes(item_seq, rows) for member in self.members], 1)

    def factors(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """What the mean scores are products of: (n, sum of D) -> (n, sum of D), (V, sum of D)"""
        parts = representation.split(self._widths, dim=1)
        factors = [member.factors(part) for member, part in zip(self.members, parts, strict=True)]
        own, items = (torch.cat(each, 1) for each in zip(*factors, strict=True))
        return own / len(self.members), items

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        return self.score_all(self(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    @property
    def streams(self) -> bool:
        """Whether `step` updates the representation item by item: every member's does."""
        return all(getattr(member, "streams", False) for member in self.members)

    def start(self) -> State:
        """The members' states of an empty history, by their number."""
        return {str(number): member.start() for number, member in enumerate(self.members)}

    def step(self, item: int, position: int, state: State) -> Array:
        """The representation (sum of D,) after the next item; updates the state."""
        own = [member.step(item, position, state[str(number)]) for number, member in enumerate(self.members)]
        return np.concatenate(own)
