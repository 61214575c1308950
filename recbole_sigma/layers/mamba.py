"""The Mamba block (Gu and Dao, arXiv 2312.00752, section 3.4), on CPU and CUDA from the same parameters."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops import causal_conv1d, selective_scan
from recbole_sigma.ops.step import Array, mamba_step, shared_arrays

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # range of the step sizes at initialisation, as in mamba-ssm
_WEIGHTS = (  # as the step's kernel takes them
    "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D",
    "out_proj.weight",
)  # fmt: skip


class Mamba(nn.Module):
    """Parameters named and shaped as those of mamba_ssm.Mamba: state dicts can be exchanged in both directions.

    Causal: a position depends on itself and earlier positions only, so padding after a row's last item changes nothing.
    """

    gives_last = gives_prefixes = True

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, selective: bool = True
    ) -> None:
        """With `selective` False, step sizes, B and C do not depend on the input; such a block has no `step`."""
        super().__init__()
        self.selective = self.streams = selective
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1.0)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        # softplus(dt_proj.bias) is log-uniform in [DT_MIN, DT_MAX] (section 3.6)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        step = torch.exp(torch.rand(self.d_inner) * math.log(DT_MAX / DT_MIN) + math.log(DT_MIN)).clamp(min=DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def init_published(self) -> None:
        """Initialise as Mamba4Rec's and SIGMA's published code does: small normal projections, softplus(0) steps."""
        for linear in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.dt_proj.bias)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), zero beyond each row's length, or (B, D), gated and projected at last items only.

        Flat rows: (T, D) -> (T, D).
        """
        if rows.wanted == "last":
            x_weight, z_weight = self.in_proj.weight.chunk(2)
            x, z = F.linear(hidden, x_weight), F.linear(rows.last(hidden), z_weight)
            y = rows.last(self._scan(x, None, rows)) * F.silu(z)
        else:
            x, z = self.in_proj(hidden).chunk(2, dim=-1)
            y = self._scan(x, z, rows)
        return self.out_proj(y)

    def start(self) -> State:
        """The state of an empty history: the convolution's window (K - 1, E) and the scan's state (E, N)."""
        scan = np.zeros_like(self.A_log.detach().numpy())
        return {"window": np.zeros((self.conv1d.kernel_size[0] - 1, self.d_inner), scan.dtype), "scan": scan}

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,), what `forward` gives at the last item."""
        return mamba_step(hidden, state["window"], state["scan"], self.weights())

    def weights(self) -> tuple[Any, ...]:
        """The parameters as the kernels in ops/step.py take them."""
        return shared_arrays(self, _WEIGHTS, self.A_log)

    def _scan(self, x: Tensor, z: Tensor | None, rows: Rows) -> Tensor:
        """Convolution and selective scan: (..., E), gate (..., E) -> (..., E)"""
        assert self.conv1d.bias is not None
        u = causal_conv1d(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu", **rows.extent)
        delta, B, C = self.select(u)
        return selective_scan(u, delta, self.decay_rates(), B, C, self.D, z, self.dt_proj.bias, **rows.extent)

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent parameters of the scan: (..., E) -> step sizes before bias and softplus, B, C (..., N)"""
        if not self.selective:
            u = torch.ones_like(u)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def decay_rates(self) -> Tensor:
        """A (E, N)"""
        return -torch.exp(self.A_log)
