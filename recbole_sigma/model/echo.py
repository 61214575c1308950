"""ECHO, i.e. EchoMamba4Rec (Wang et al., arXiv 2406.02638): spectral filter, bidirectional Mamba, gated linear unit."""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.spectral_filter import SpectralFilter
from recbole_sigma.model.sequence import SequenceModel


class BidirectionalMamba(nn.Module):
    """Mamba over the history and over the reversed history, each with dropout, residual and LayerNorm; summed."""

    def __init__(self, hidden_size: int, d_state: int, d_conv: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.flip = PartialFlip(0)
        self.forward_mamba = Mamba(hidden_size, d_state, d_conv, expand)
        self.backward_mamba = Mamba(hidden_size, d_state, d_conv, expand)
        self.dropout = Dropout(dropout)
        self.forward_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.backward_norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item: the first one of the reversed history"""
        forward = self.forward_mamba(hidden, rows)
        if rows.wanted == "last":
            hidden = rows.last(hidden)
            backward = self.backward_mamba(hidden[:, None], Rows(torch.ones_like(rows.lengths)))[:, 0]
        else:
            backward = self.flip(self.backward_mamba(self.flip(hidden, rows.lengths), rows), rows.lengths)
        return self.forward_norm(self.dropout(forward) + hidden) + self.backward_norm(self.dropout(backward) + hidden)


class GatedLinearUnit(nn.Module):
    """((H W1 + b1) * sigmoid(H W2 + b2)) W3 + b3, dropout, residual, LayerNorm; or dropout after the residual."""

    def __init__(self, hidden_size: int, dropout: float, dropout_last: bool) -> None:
        super().__init__()
        self.dropout_last = dropout_last
        self.value, self.gate, self.outer = (nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        gated = self.outer(self.value(hidden) * torch.sigmoid(self.gate(hidden)))
        return self.norm(self.dropout(gated + hidden) if self.dropout_last else self.dropout(gated) + hidden)


class ECHOLayer(nn.Module):
    """Filter -> Mamba in both directions -> gated linear unit."""

    gives_last = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.filter = SpectralFilter(hidden_size, config["MAX_ITEM_LIST_LENGTH"], dropout)
        self.mamba = BidirectionalMamba(hidden_size, config["d_state"], config["d_conv"], config["expand"], dropout)
        self.gated_unit = GatedLinearUnit(hidden_size, dropout, config["dropout_after_residual"])

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item"""
        return self.gated_unit(self.mamba(self.filter(hidden, rows), rows))


class ECHO(SequenceModel):
    """ECHO layers on the item embeddings."""

    layer_class = ECHOLayer
