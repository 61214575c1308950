"""Moving averages over the history: a diagonal linear recurrence with constant coefficients."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.averages import moving_averages
from recbole_sigma.ops.step import Array, linear, shared_arrays


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
        weight = self.mix * torch.sigmoid(-self.decay)  # 1 - a = sigmoid(-decay)
        return self.out(moving_averages(self.value(hidden), F.logsigmoid(self.decay), weight, **rows.extent))

    def start(self) -> State:
        """The state of an empty history: (D, n)"""
        return {"sums": np.zeros_like(self.decay.detach().numpy())}

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,)"""
        decay, mix = shared_arrays(self, ("decay", "mix"), self.decay)
        complement = 1 / (1 + np.exp(decay))  # 1 - a
        state["sums"] = (1 - complement) * state["sums"] + linear(hidden, self.value)[:, None]
        return linear((state["sums"] * (mix * complement)).sum(-1), self.out)
