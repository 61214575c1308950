"""SIGMA's Feature Extract GRU (arXiv 2408.11451, section 2.3.3): short-term dependencies of short histories."""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.gru import gru, gru_reset_before, reset_before_cell

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
        zeros = next(self.gru.parameters()).new_zeros(self.gru.hidden_size)
        return {"window": zeros.new_zeros(0, self.gru.input_size), "gru": zeros}

    def step(self, hidden: Tensor, state: State) -> Tensor:
        """The next item: (D,) -> (D,), what `forward` gives at the last item.

        The convolution looks at the items after a position, too: its last width // 2 outputs change with the next item,
        and the GRU reads them again then.
        """
        features, final = hidden[None], 1
        if self.conv is not None:
            half = self.conv.kernel_size[0] // 2
            window = torch.cat([state["window"], hidden[None]])
            length = torch.tensor([len(window)], device=hidden.device)
            features = self._features(window[None], Rows(length))[0, -(half + 1) :]
            final = int(len(window) > half)
            state["window"] = window[max(len(window) - 2 * half, 0) :]
        cell = torch.gru_cell if self.reset == "after" else reset_before_cell
        after = state["gru"][None]
        for number in range(len(features)):
            after = cell(features[number : number + 1], after, *self._weights)
            if final and number == 0:
                state["gru"] = after[0]
        return after[0]
