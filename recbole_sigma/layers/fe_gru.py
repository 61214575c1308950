"""SIGMA's Feature Extract GRU (arXiv 2408.11451, section 2.3.3): short-term dependencies of short histories."""

import torch
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.gru import gru

CONVOLUTIONS = ("conv", "residual", "none")


class FeatureExtractGRU(nn.Module):
    """F = GRU(Conv1d(H)) (eqs. 8-9).

    The GRU reads the convolution's output (`conv`: conv, the paper), that plus H (residual), or H alone (none).
    """

    def __init__(self, hidden_size: int, width: int, conv: str, bias: bool) -> None:
        super().__init__()
        self.residual = conv == "residual"
        self.conv = None if conv == "none" else SequenceConv(hidden_size, width)
        self.gru = nn.GRU(hidden_size, hidden_size, bias=bias, batch_first=True)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        weight_ih, weight_hh, *biases = self.gru.parameters()
        bias_ih, bias_hh = biases or (None, None)
        # the GRU reads all positions
        features = self._features(hidden, Rows(rows.lengths, "flat" if rows.wanted == "prefixes" else "all"))
        states = gru(features, weight_ih, weight_hh, bias_ih, bias_hh, **rows.extent)
        if rows.wanted == "prefixes" and self.conv is not None:
            # the convolution looks one item ahead, which a prefix does not have at its end: the last step again
            ends, before = self._features(hidden, rows), rows.earlier(states, 1)
            return torch.gru_cell(ends, before, weight_ih, weight_hh, bias_ih, bias_hh)
        return rows.output(states)

    def _features(self, hidden: Tensor, rows: Rows) -> Tensor:
        """What the GRU reads."""
        if self.conv is None:
            return hidden
        features = self.conv(hidden, rows)
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
        states, _ = self.gru(features, state["gru"][None])
        if final:
            state["gru"] = states[0]
        return states[-1]
