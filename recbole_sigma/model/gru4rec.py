"""GRU4Rec (Tan, Xu, Liu, DLRS 2016, arXiv 1606.08117): RecBole's class, with rows of similar length together."""

import numpy as np
from recbole.model.sequential_recommender.gru4rec import GRU4Rec as RecBoleGRU4Rec
from torch import Tensor

from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State, steps_as
from recbole_sigma.model.by_length import ByLength
from recbole_sigma.ops.gru import gru
from recbole_sigma.ops.step import Array, gru_step, linear, shared_arrays
from recbole_sigma.ops.traced import exporting


class GRU4Rec(ByLength, RecBoleGRU4Rec):
    """RecBole's GRU4Rec. Padding after a row's last item has no effect: the GRU reads it after that item."""

    causal = True

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """RecBole's `forward` on flat histories: (T,) -> (T, D)"""
        return self._states(item_seq, rows)

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D)."""
        if exporting():  # torch.export would record RecBole's GRU for one length
            rows = Rows(lengths)
            return rows.last(self._states(item_seq, rows))
        return super().forward(item_seq, lengths)

    def _states(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """All positions: (B, L) or (T,) -> (..., D)"""
        hidden = self.emb_dropout(self.item_embedding(item_seq))
        for weight_ih, weight_hh in self.gru_layers.all_weights:
            hidden = gru(hidden, weight_ih, weight_hh, **rows.extent)
        return self.dense(hidden)

    @property
    def streams(self) -> bool:
        """Whether `step` updates the representation item by item."""
        return steps_as(type(self), ("forward", "step"), ("full_sort_predict", "step"))

    def start(self) -> State:
        """The state of an empty history."""
        column = self.gru_layers.weight_hh_l0[0].detach().numpy()
        return {"gru": np.zeros((self.gru_layers.num_layers, self.hidden_size), column.dtype)}

    def step(self, item: int, position: int, state: State) -> Array:
        """The representation (D,) after the next item."""
        hidden: Array = shared_arrays(self.item_embedding, ("weight",), self.item_embedding.weight)[0][item]
        weights = shared_arrays(self.gru_layers, (*self.gru_layers._parameters,), self.gru_layers.weight_hh_l0)
        for layer, before in enumerate(state["gru"]):
            before[:] = hidden = gru_step(hidden, before, weights[2 * layer : 2 * layer + 2])
        return linear(hidden, self.dense)
