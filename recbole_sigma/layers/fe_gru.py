"""SIGMA's Feature Extract GRU (arXiv 2408.11451, section 2.3.3): short-term dependencies of short histories."""

import torch
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.padding import Rows
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
