"""Moving averages over the history: a diagonal linear recurrence with constant coefficients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops import selective_scan


class MovingAverages(nn.Module):
    """Several exponential moving averages per channel, mixed by trained weights.

        v_t = W h_t + b,    s_(t,n) = a_n s_(t-1,n) + (1 - a_n) v_t,    y_t = W' (sum_n m_n s_(t,n)) + b'

    The decays a in (0, 1) are trained per channel. It is the Mamba block without selection, convolution and gate, and a
    special case of diagonal state-space models (S4D, arXiv 2206.11893; MEGA, arXiv 2209.10655). Causal.
    """

    gives_prefixes = streams = True

    def __init__(self, hidden_size: int, n_decays: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-3, 3, n_decays).repeat(hidden_size, 1))  # a = sigmoid(decay)
        self.mix = nn.Parameter(torch.full((hidden_size, n_decays), 1 / n_decays))
        self.value, self.out = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or flat rows (T, D) -> (T, D)"""
        n_decays = self.decay.shape[1]
        values = self.value(hidden).repeat_interleave(n_decays, -1)  # a channel for each average
        ones = torch.ones_like(values)
        sums = selective_scan(  # of a_n^(t-s) v_s over s <= t
            values, ones, F.logsigmoid(self.decay).view(-1, 1), ones[..., :1], ones[..., :1],
            delta_softplus=False, **rows.extent,
        )  # fmt: skip
        return self._mixed(sums.unflatten(-1, (-1, n_decays)))

    def start(self) -> State:
        """The state of an empty history: (D, n)"""
        return {"sums": torch.zeros_like(self.decay)}

    def step(self, hidden: Tensor, state: State) -> Tensor:
        """The next item: (D,) -> (D,)"""
        state["sums"] = torch.sigmoid(self.decay) * state["sums"] + self.value(hidden)[:, None]
        return self._mixed(state["sums"])

    def _mixed(self, sums: Tensor) -> Tensor:
        """(..., D, n) -> (..., D)"""
        return self.out((sums * (self.mix * torch.sigmoid(-self.decay))).sum(-1))  # 1 - a = sigmoid(-decay)
