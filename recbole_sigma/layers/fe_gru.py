"""SIGMA's Feature Extract GRU (arXiv 2408.11451, section 2.3.3): short-term dependencies of short histories."""

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
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item"""
        features = hidden
        if self.conv is not None:
            features = self.conv(hidden, Rows(rows.lengths))  # the GRU reads all positions
            if self.residual:
                features = features + hidden
        weight_ih, weight_hh, *biases = self.gru.parameters()
        bias_ih, bias_hh = biases or (None, None)
        return rows.output(gru(features, weight_ih, weight_hh, bias_ih, bias_hh, rows.lengths))
