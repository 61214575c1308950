"""SIGMA's Feature Extract GRU (arXiv 2408.11451, section 2.3.3): short-term dependencies of short histories."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.gru import gru, gru_reset_before, reset_before_cell
from recbole_sigma.ops.step import Array, gru_step, shared_arrays

CONVOLUTIONS = ("conv", "residual", "none")


class FeatureExtractGRU(nn.Module):
    """F = GRU(Conv1d(H)) (eq. 7).

    The GRU reads the convolution's output (`conv`: conv, the paper), that plus H (residual), or H alone (none). Its
    reset gate applies after the recurrent product (`reset`: after, as in torch), or before (the paper).
    """

    def __init__(self, hidden_size: int, width: int, conv: str, bias: bool, reset: str = "after") -> None:
        super().__init__()
        self.reset = reset
        self.residual = conv == "residual"
        self.conv = None if conv == "none" else SequenceConv(hidden_size, width)
        self.gru = nn.GRU(hidden_size, hidden_size, bias=bias, batch_first=True)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        # the GRU reads all positions
        features = self._features(hidden, Rows(rows.lengths, "flat" if rows.wanted == "prefixes" else "all"))
        read, cell = (gru, torch.gru_cell) if self.reset == "after" else (gru_reset_before, reset_before_cell)
        states = read(features, *self._weights, **rows.extent)
        if rows.wanted == "prefixes" and self.conv is not None:
            # the convolution looks `half` items ahead, which a prefix does not have at its end: the last steps again
            half = self.conv.kernel_size[0] // 2
            states = rows.earlier(states, half)
            for ahead in reversed(range(half)):
                features = rows.earlier(self._features(hidden, rows, ahead), ahead)
                after = cell(features, states, *self._weights)
                states = after.where((rows.position >= ahead)[:, None], states) if ahead else after
            return states
        return rows.output(states)

    @property
    def _weights(self) -> tuple[Any, ...]:
        """The GRU's parameters as the operations take them; None for biases that it does not have."""
        weights = tuple(self.gru._parameters.values())
        return weights if self.gru.bias else (*weights, None, None)

    def _features(self, hidden: Tensor, rows: Rows, ahead: int = 0) -> Tensor:
        """What the GRU reads; `ahead` as for the convolution."""
        if self.conv is None:
            return hidden
        features = self.conv(hidden, rows, ahead)
        return features + hidden if self.residual else features

    def start(self) -> State:
        """The state of an empty history: the last items (n, D) that the convolution needs, the GRU's state (D,)."""
        zeros = np.zeros_like(next(self.gru.parameters())[0].detach().numpy())
        return {"window": np.empty((0, self.gru.input_size), zeros.dtype), "gru": zeros}

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,), what `forward` gives at the last item.

        The convolution looks at the items after a position, too: its last width // 2 outputs change with the next item,
        and the GRU reads them again then.
        """
        features, final = hidden[None], 1
        if self.conv is not None:
            half = self.conv.kernel_size[0] // 2
            window = np.concatenate([state["window"], hidden[None]])
            rows = Rows(torch.tensor([len(window)]))
            features = self._features(torch.from_numpy(window)[None], rows)[0, -(half + 1) :].numpy()
            final = int(len(window) > half)
            state["window"] = window[max(len(window) - 2 * half, 0) :]
        weights = shared_arrays(self.gru, (*self.gru._parameters,), next(self.gru.parameters()))
        after: Array = state["gru"]
        for number, feature in enumerate(features):
            if self.reset == "after":
                after = gru_step(feature, after, weights)
            else:
                pair = torch.from_numpy(feature)[None], torch.from_numpy(after)[None]
                after = reset_before_cell(*pair, *self._weights)[0].numpy()
            if final and number == 0:
                state["gru"] = after
        return after
