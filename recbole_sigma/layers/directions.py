"""SIGMA's two directions (arXiv 2408.11451, sections 2.3.1, 2.3.2): Mamba on the history and on the flipped one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_sigma.layers.flip import PartialFlip, prefix_ends
from recbole_sigma.layers.flipped_prefixes import flipped_prefixes
from recbole_sigma.layers.flipped_scan import start_flipped, step_flipped
from recbole_sigma.layers.gate import DenseSelectiveGate, ReleasedGates
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.step import Array, linear

CONV_WIDTH = 3  # of the gate


class Directions(nn.Module):
    """M = Mamba(H) and M^f = Mamba(H^f), each times its gate; the base class of SIGMA's layer.

    With `flip_ranges`, M^f is the average of the flips at several r, weighted at each position by the layer's input h
    there, of which the last layer needs the last item's: sum_i softmax_i(W h + b) G(H^f_i) M^f_i.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, has_mamba = config["hidden_size"], config["mamba"]
        slots = config["MAX_ITEM_LIST_LENGTH"] if config["flip"] == "padded" else None
        ranges = (config["flip_ranges"] or [config["r"]]) if has_mamba and config["partial_flip"] else []
        self.flips = [PartialFlip(r, slots) for r in ranges]
        ssm = hidden_size, config["d_state"], config["d_conv"], config["expand"]
        self.mamba = Mamba(*ssm) if has_mamba else None
        self.flipped_mamba = None if config["share_mamba"] or not ranges else Mamba(*ssm)
        self.gate: ReleasedGates | DenseSelectiveGate | None = None
        if config["ds_gate"] and has_mamba:
            if config["form"] == "released":
                self.gate = ReleasedGates(hidden_size, config["gate_dropout"], flipped=bool(ranges))
            else:
                self.gate = DenseSelectiveGate(hidden_size, CONV_WIDTH)
        self.flip_weights = nn.Linear(hidden_size, len(ranges)) if len(ranges) > 1 else None

    def read(self, hidden: Tensor, rows: Rows) -> list[Tensor]:
        """G(H) M and G(H^f) M^f: (B, L, D) -> n times (B, L, D), or (B, D) at last items; flat rows (T, D) -> (T, D)"""
        if self.mamba is None:
            return []
        states, gates = (self._prefixes if rows.wanted == "prefixes" else self._rows)(self.mamba, hidden, rows)
        if self.flip_weights is None:
            return _gated(states, gates)
        return _averaged(_gated(states, gates), self.flip_weights(rows.output(hidden)).softmax(-1))

    def _rows(self, mamba: Mamba, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """Mamba's states of each direction, and their gates: (B, L, D) -> n times (B, L, D), or (B, D)"""
        inputs = [hidden, *(flip(hidden, rows.lengths) for flip in self.flips)]  # H, H^f; H itself, if too short
        if self.flipped_mamba is not None:
            states = [mamba(hidden, rows), *(self.flipped_mamba(each, rows) for each in inputs[1:])]
        else:
            different = [hidden, *(each for each in inputs if each is not hidden)]
            together = Rows(rows.lengths.repeat(len(different)), rows.wanted) if len(different) > 1 else rows
            read = mamba(torch.cat(different) if len(different) > 1 else hidden, together)
            own, *others = read.unflatten(0, (len(different), -1))
            states = [own, *(own if each is hidden else others.pop(0) for each in inputs[1:])]
        return states, None if self.gate is None else self.gate(inputs, rows)

    def _prefixes(self, mamba: Mamba, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """The same at the ends of all prefixes of flat rows: (T, D) -> n times (T, D)"""
        states, block = [mamba(hidden, rows)], self.flipped_mamba or mamba
        if self.flips:
            unflipped = states[0] if self.flipped_mamba is None else block(hidden, rows)
            states += [flipped_prefixes(block, hidden, rows, flip.r, unflipped) for flip in self.flips]
        if self.gate is None:
            return states, None
        reach = self.gate.reach
        own = prefix_ends(hidden, rows, reach)
        flipped = [own if flip.r >= reach else prefix_ends(hidden, rows, reach, flip.r) for flip in self.flips]
        return states, self.gate([own, *flipped], Rows((rows.position + 1).clamp(max=reach), "last"))

    def start(self) -> State:
        """The state of an empty history."""
        if self.mamba is None:
            return {}
        flipped = {name: start_flipped(self.flipped_mamba or self.mamba) for name in self._names()}
        return {
            "mamba": self.mamba.start(),
            "last": np.empty((0, self.mamba.out_proj.out_features), np.float32),
        } | flipped

    def _names(self) -> list[str]:
        return [f"flipped{number or ''}" for number in range(len(self.flips))]

    def step_read(self, hidden: Array, state: State) -> list[Array]:
        """`read` at the next item: (D,) -> n times (D,)"""
        if self.mamba is None:
            return []
        last = np.concatenate([state["last"], hidden[None]])[-(CONV_WIDTH // 2 + 1) :]  # all that the gate looks at
        state["last"] = last
        states, ends = [self.mamba.step(hidden, state["mamba"])], [last]
        for name, flip in zip(self._names(), self.flips, strict=True):
            output, end = step_flipped(self.flipped_mamba or self.mamba, flip.r, hidden, state[name])
            states.append(output)
            ends.append(end[-len(last) :])
        gated = _gated(states, None if self.gate is None else self.gate.step(ends))
        if self.flip_weights is None:
            return gated
        scores = linear(hidden, self.flip_weights)
        weights = np.exp(scores - scores.max())
        return _averaged(gated, weights / weights.sum())


def _gated(states: list[Any], gates: list[Any] | None) -> list[Any]:
    return states if gates is None else [gate * state for gate, state in zip(gates, states, strict=True)]


def _averaged(states: list[Any], weights: Any) -> list[Any]:
    """The first, and the average of the others by weights (..., n): (..., D) each"""
    own, *flipped = states
    return [own, sum(weights[..., number, None] * each for number, each in enumerate(flipped))]
