"""LinRec's attention (Liu et al., SIGIR 2023, arXiv 2411.01537): softmax replaced so that cost is linear in L."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows

EPSILON = 1e-6  # smallest norm: where dropout leaves only zeros, torch's 1e-12 gives gradients that overflow


class LinearAttention(nn.Module):
    """Heads of rho1(elu(Q)) (rho2(elu(K))^T V), with the dense output layer of SASRec (eqs. 7-9).

    rho1 divides a row of elu(Q) by its L2 norm and sqrt(d); rho2 divides a column of elu(K), one feature along the
    history, by its L2 norm and sqrt(length). Reads the whole history at every position: not causal.
    """

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item"""
        asking = rows.last(hidden)[:, None] if rows.wanted == "last" else hidden
        query, key, value = F.elu(self.query(asking)), F.elu(self.key(hidden)), self.value(hidden)
        key = rows.zero_padding(key)
        query, key, value = (heads.unflatten(-1, (self.n_heads, -1)) for heads in (query, key, value))
        query = F.normalize(query, dim=-1, eps=EPSILON) / math.sqrt(query.shape[-1])  # rho1
        key = F.normalize(key, dim=1, eps=EPSILON) / rows.lengths.to(key.dtype).sqrt()[:, None, None, None]  # rho2
        context = torch.einsum("blhd,blhe->bhde", key, value)  # K^T V
        output = self.output(torch.einsum("blhd,bhde->blhe", query, context).flatten(2))
        return output[:, 0] if rows.wanted == "last" else output
