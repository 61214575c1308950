"""SIGMA, selective gated Mamba (Liu et al., arXiv 2408.11451): the paper's equations, or what its authors released."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.fe_gru import CONVOLUTIONS, FeatureExtractGRU
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.flip import PartialFlip, prefix_ends
from recbole_sigma.layers.flipped_prefixes import flipped_prefixes
from recbole_sigma.layers.flipped_scan import start_flipped, step_flipped
from recbole_sigma.layers.gate import DenseSelectiveGate, ReleasedGates
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.mixing import MIXINGS, make_mixing
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops.step import Array, layer_norm, linear

# Initial weights of the branches in the weighted sum; the released code's order is forward, flipped, FE-GRU.
WEIGHTS = {"paper": {"mamba": 0.5, "gru": 0.5}, "released": {"mamba": 0.8, "flipped": 0.1, "gru": 0.1}}
CONV_WIDTH = 3  # of the gate


class SIGMALayer(nn.Module):
    """Mamba on the history and on the partially flipped history, gated, and the FE-GRU; mixed, then feed-forward."""

    gives_last = gives_prefixes = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.released, has_mamba = config["form"] == "released", config["mamba"]
        stacked = config["num_layers"] > 1
        self.residual = {"stacked": "layer" if stacked else "none"}.get(config["residual"], config["residual"])
        has_flip = has_mamba and config["partial_flip"]
        # a layer above would need all positions, which change with the next item; `padded` moves all items
        self.streams = not stacked and not (has_flip and config["flip"] == "padded")

        slots = config["MAX_ITEM_LIST_LENGTH"] if config["flip"] == "padded" else None
        self.flip = PartialFlip(config["r"], slots) if has_flip else None
        ssm = hidden_size, config["d_state"], config["d_conv"], config["expand"]
        self.mamba = Mamba(*ssm) if has_mamba else None
        self.flipped_mamba = None if config["share_mamba"] or not has_flip else Mamba(*ssm)
        self.gate: ReleasedGates | DenseSelectiveGate | None = None
        if config["ds_gate"] and has_mamba:
            if self.released:
                self.gate = ReleasedGates(hidden_size, config["gate_dropout"], flipped=has_flip)
            else:
                self.gate = DenseSelectiveGate(hidden_size, CONV_WIDTH)
        self.fe_gru = None
        if config["fe_gru"]:
            width, conv, reset = config["fe_conv_width"], config["fe_conv"], config["gru_reset"]
            self.fe_gru = FeatureExtractGRU(hidden_size, width, conv, bias=not self.released, reset=reset)

        self.mixing = make_mixing(config["mixing"], branch_weights(config), hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout if self.released else 0.0)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12) if self.released else nn.Identity()
        self.feed_forward = FeedForward(hidden_size, dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        directions = self._prefixes if rows.wanted == "prefixes" else self._directions
        states, gates = ([], None) if self.mamba is None else directions(self.mamba, hidden, rows)
        features = None if self.fe_gru is None else self.fe_gru(hidden, rows)  # F (7)
        hidden = rows.output(hidden)
        output = self.dropout(self.projection(self.mixing(self._branches(hidden, states, gates, features))))  # Z (8)
        return self.feed_forward(self.norm(output + hidden if self.residual == "layer" else output))  # (10)

    def _directions(self, mamba: Mamba, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """Mamba's states of each direction, and their gates: (B, L, D) -> n times (B, L, D), or (B, D)"""
        flipped = None if self.flip is None else self.flip(hidden, rows.lengths)  # H^f
        if flipped is None:
            states = [mamba(hidden, rows)]  # M
        elif self.flipped_mamba is not None:
            states = [mamba(hidden, rows), self.flipped_mamba(flipped, rows)]  # M, M^f
        elif flipped is hidden:  # rows too short to be flipped
            states = [mamba(hidden, rows)] * 2
        else:
            both = mamba(torch.cat([hidden, flipped]), Rows(rows.lengths.repeat(2), rows.wanted))
            states = [*both.unflatten(0, (2, -1))]
        return states, None if self.gate is None else self.gate(hidden, flipped, rows)

    def _prefixes(self, mamba: Mamba, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """The same at the ends of all prefixes of flat rows: (T, D) -> n times (T, D)"""
        states, r = [mamba(hidden, rows)], None
        if self.flip is not None:
            r, block = self.flip.r, self.flipped_mamba or mamba
            unflipped = states[0] if self.flipped_mamba is None else block(hidden, rows)
            states.append(flipped_prefixes(block, hidden, rows, r, unflipped))
        if self.gate is None:
            return states, None
        reach = self.gate.reach
        own = prefix_ends(hidden, rows, reach)
        flipped = own if r is not None and r >= reach else None if r is None else prefix_ends(hidden, rows, reach, r)
        return states, self.gate(own, flipped, Rows((rows.position + 1).clamp(max=reach), "last"))

    def start(self) -> State:
        """The state of an empty history."""
        state: State = {"last": self.projection.weight[:0].detach().numpy()}
        if self.mamba is not None:
            state["mamba"] = self.mamba.start()
            if self.flip is not None:
                state["flipped"] = start_flipped(self.flipped_mamba or self.mamba)
        if self.fe_gru is not None:
            state["fe_gru"] = self.fe_gru.start()
        return state

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,). Costs O(r + K), whatever the length of the history."""
        states, gates = ([], None) if self.mamba is None else self._step_directions(self.mamba, hidden, state)
        features = None if self.fe_gru is None else self.fe_gru.step(hidden, state["fe_gru"])
        output = linear(self.mixing.step(self._branches(hidden, states, gates, features)), self.projection)
        return self.feed_forward.step(layer_norm(output + hidden if self.residual == "layer" else output, self.norm))

    def _step_directions(self, mamba: Mamba, hidden: Array, state: State) -> tuple[list[Array], list[Array] | None]:
        """`_directions` at the next item: (D,) -> n times (D,)"""
        last = np.concatenate([state["last"], hidden[None]])[-(CONV_WIDTH // 2 + 1) :]  # all that the gate looks at
        state["last"] = last
        states, flipped = [mamba.step(hidden, state["mamba"])], None
        if self.flip is not None:
            output, flipped = step_flipped(self.flipped_mamba or mamba, self.flip.r, hidden, state["flipped"])
            states.append(output)
            flipped = flipped[-len(last) :]
        return states, None if self.gate is None else self.gate.step(last, flipped)

    def _branches(self, hidden: Any, states: list[Any], gates: list[Any] | None, features: Any) -> list[Any]:
        """What is mixed, of H, M and M^f, their gates and F: (..., D) each, tensors or arrays"""
        if gates is not None:
            states = [gate * state for gate, state in zip(gates, states, strict=True)]
        branches = states if self.released or not states else [sum(states)]  # M^ = G(H) M + G(H^f) M^f (4)-(6)
        if self.residual == "mamba":
            branches = [branches[0] + hidden, *branches[1:]]
        if features is not None:
            branches = [*branches, features + hidden if self.residual == "gru" else features]
        return branches


def branch_weights(config: Any) -> dict[str, float]:
    """Initial weight of each branch that these settings have. Raises UserError for settings that do not agree."""
    weights = dict(WEIGHTS[config["form"]])
    if not (config["mamba"] and config["partial_flip"]):
        weights.pop("flipped", None)
    for name, setting in (("mamba", "mamba"), ("gru", "fe_gru")):
        if not config[setting]:
            del weights[name]
    if not weights:
        raise UserError("mamba and fe_gru are both false, and nothing reads the history; leave one of them true")
    if config["residual"] not in ("stacked", "none", "layer", *weights):
        raise UserError(f"residual: {config['residual']} is around a branch that is switched off")
    if (given := config["mixing_weights"]) is None:
        return weights
    if config["mixing"] not in ("weighted", "fixed") or len(given) != len(weights):
        right = f"must be one number for each of {', '.join(weights)}, with mixing weighted or fixed"
        raise UserError(f"mixing_weights {right}, got {given} with mixing {config['mixing']}")
    return dict(zip(weights, map(float, given), strict=True))


class SIGMA(SequenceModel):
    """SIGMA layers on the item embeddings. The settings are explained in properties/model/SIGMA.yaml."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.embeds_padding = config["padding"] == "embedding"
        if self.embeds_padding and not (config["flip"] == "padded" and config["partial_flip"] and config["mamba"]):
            raise UserError("padding: embedding needs flip: padded with mamba and partial_flip true")

    @classmethod
    def one_pass_problem(cls, config: Any) -> str | None:
        """One layer is computed at the ends of all prefixes; a second would need the first's states of each prefix."""
        if config["num_layers"] > 1:
            return f"num_layers is {config['num_layers']}, and each prefix would need states of its own between layers"
        padded = config["flip"] == "padded" and config["partial_flip"] and config["mamba"]
        return "flip is padded, and not length" if padded else None

    layer_class = SIGMALayer
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        **SequenceModel.choices,
        "form": ("paper", "released"),
        "flip": ("length", "padded"),
        "padding": ("zeros", "embedding"),
        "residual": ("stacked", "none", "layer", "mamba", "gru"),
        "fe_conv": CONVOLUTIONS,
        "gru_reset": ("after", "before"),
        "mixing": MIXINGS,
    }
