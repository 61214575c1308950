"""SIGMA, selective gated Mamba (Liu et al., arXiv 2408.11451): the paper's equations, or what its authors released."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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

# Initial weights of the branches in the weighted sum; the released code's order is forward, flipped, FE-GRU.
WEIGHTS = {"paper": {"mamba": 0.5, "gru": 0.5}, "released": {"mamba": 0.8, "flipped": 0.1, "gru": 0.1}}
CONV_WIDTH = 3
FEW_POSITIONS = 256  # of a small batch: one call for both directions, since a call costs more than its work


class SIGMALayer(nn.Module):
    """Mamba on the history and on the partially flipped history, gated, and the FE-GRU; mixed, then feed-forward."""

    gives_last = gives_prefixes = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.released = config["form"] == "released"
        self.stacked = config["num_layers"] > 1
        # a layer above would need all positions, which change with the next item; `padded` moves all items
        self.streams = not self.stacked and not (config["partial_flip"] and config["flip"] == "padded")

        slots = config["MAX_ITEM_LIST_LENGTH"] if config["flip"] == "padded" else None
        self.flip = PartialFlip(config["r"], slots) if config["partial_flip"] else None
        ssm = hidden_size, config["d_state"], config["d_conv"], config["expand"]
        self.mamba = Mamba(*ssm)
        self.flipped_mamba = None if config["share_mamba"] or self.flip is None else Mamba(*ssm)
        self.gate: ReleasedGates | DenseSelectiveGate | None = None
        if config["ds_gate"]:
            if self.released:
                self.gate = ReleasedGates(hidden_size, config["gate_dropout"], flipped=self.flip is not None)
            else:
                self.gate = DenseSelectiveGate(hidden_size, CONV_WIDTH)
        self.fe_gru = None
        if config["fe_gru"]:
            self.fe_gru = FeatureExtractGRU(hidden_size, CONV_WIDTH, config["fe_conv"], bias=not self.released)

        weights = dict(WEIGHTS[config["form"]])
        if self.flip is None:
            weights.pop("flipped", None)
        if self.fe_gru is None:
            weights.pop("gru")
        self.mixing = make_mixing(config["mixing"], list(weights.values()), hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout if self.released else 0.0)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12) if self.released else nn.Identity()
        self.feed_forward = FeedForward(hidden_size, dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        states, gates = self._prefixes(hidden, rows) if rows.wanted == "prefixes" else self._directions(hidden, rows)
        features = None if self.fe_gru is None else self.fe_gru(hidden, rows)  # F (9)
        output = self.dropout(self.projection(self._mix(states, gates, features)))
        if self.stacked:
            output = output + rows.output(hidden)
        return self.feed_forward(self.norm(output))  # (11), (12)

    def _directions(self, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """Mamba's states of each direction, and their gates: (B, L, D) -> n times (B, L, D), or (B, D)"""
        flipped = None if self.flip is None else self.flip(hidden, rows.lengths)  # H^f (1)
        few = not self.training and hidden.shape[:2].numel() <= FEW_POSITIONS
        if few and flipped is not None and flipped is not hidden and self.flipped_mamba is None:
            both = self.mamba(torch.cat([hidden, flipped]), Rows(rows.lengths.repeat(2), rows.wanted))
            return [*both.chunk(2)], None if self.gate is None else self.gate(hidden, flipped, rows)
        states = [self.mamba(hidden, rows)]  # M (2)
        if flipped is hidden and self.flipped_mamba is None:  # rows too short to be flipped, one block: M again
            states.append(states[0])
        elif flipped is not None:
            states.append((self.flipped_mamba or self.mamba)(flipped, rows))  # M^f (2)
        return states, None if self.gate is None else self.gate(hidden, flipped, rows)

    def _prefixes(self, hidden: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor] | None]:
        """The same at the ends of all prefixes of flat rows: (T, D) -> n times (T, D)"""
        states, r = [self.mamba(hidden, rows)], None
        if self.flip is not None:
            r, block = self.flip.r, self.flipped_mamba or self.mamba
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
        nothing = self.projection.weight.new_zeros(0, self.projection.in_features)
        state: State = {"mamba": self.mamba.start(), "last": nothing}
        if self.flip is not None:
            state["flipped"] = start_flipped(self.flipped_mamba or self.mamba)
        if self.fe_gru is not None:
            state["fe_gru"] = self.fe_gru.start()
        return state

    def step(self, hidden: Tensor, state: State) -> Tensor:
        """The next item: (D,) -> (D,). Costs O(r + K), whatever the length of the history."""
        last = torch.cat([state["last"], hidden[None]])[-(CONV_WIDTH // 2 + 1) :]  # all that the gate looks at
        state["last"] = last
        states, flipped = [self.mamba.step(hidden, state["mamba"])], None
        if self.flip is not None:
            output, flipped = step_flipped(self.flipped_mamba or self.mamba, self.flip.r, hidden, state["flipped"])
            states.append(output)
            flipped = flipped[-len(last) :][None]
        gates = None
        if self.gate is not None:
            rows = Rows(torch.tensor([len(last)], device=hidden.device), "last")
            gates = [gate[0] for gate in self.gate(last[None], flipped, rows)]
        features = None if self.fe_gru is None else self.fe_gru.step(hidden, state["fe_gru"])
        return self.feed_forward.step(self.norm(self.projection(self._mix(states, gates, features))))

    def _mix(self, states: list[Tensor], gates: list[Tensor] | None, features: Tensor | None) -> Tensor:
        """Z of M and M^f, their gates and F: (..., D) each -> (..., D)"""
        if gates is not None:
            states = [gate * state for gate, state in zip(gates, states, strict=True)]
        branches = states if self.released else [sum(states)]  # M^ = G(H) M + G(H^f) M^f (6)
        return self.mixing(branches if features is None else [*branches, features])  # (10)


class SIGMA(SequenceModel):
    """SIGMA layers on the item embeddings. The settings are explained in properties/model/SIGMA.yaml."""

    @classmethod
    def one_pass_problem(cls, config: Any) -> str | None:
        """One layer is computed at the ends of all prefixes; a second would need the first's states of each prefix."""
        if config["num_layers"] > 1:
            return f"num_layers is {config['num_layers']}, and each prefix would need states of its own between layers"
        return "flip is padded, and not length" if config["flip"] == "padded" and config["partial_flip"] else None

    layer_class = SIGMALayer
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        **SequenceModel.choices,
        "form": ("paper", "released"),
        "flip": ("length", "padded"),
        "fe_conv": CONVOLUTIONS,
        "mixing": MIXINGS,
    }
