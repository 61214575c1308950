"""SIGMA, selective gated Mamba (Liu et al., arXiv 2408.11451): the paper's equations, or what its authors released."""

from typing import Any, ClassVar

from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.directions import Directions
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.fe_gru import CONVOLUTIONS, FeatureExtractGRU
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.mixing import MIXINGS, make_mixing
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops.step import Array, layer_norm, linear

# Initial weights of the branches in the weighted sum; the released code's order is forward, flipped, FE-GRU.
WEIGHTS = {"paper": {"mamba": 0.5, "gru": 0.5}, "released": {"mamba": 0.8, "flipped": 0.1, "gru": 0.1}}


class SIGMALayer(Directions):
    """Mamba on the history and on the partially flipped history, gated, and the FE-GRU; mixed, then feed-forward."""

    gives_last = gives_prefixes = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.released = config["form"] == "released"
        stacked = config["num_layers"] > 1
        self.residual = {"stacked": "layer" if stacked else "none"}.get(config["residual"], config["residual"])
        # a layer above would need all positions, which change with the next item; `padded` moves all items
        self.streams = not stacked and not (self.flips and config["flip"] == "padded")
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
        states = self.read(hidden, rows)
        features = None if self.fe_gru is None else self.fe_gru(hidden, rows)  # F (7)
        hidden = rows.output(hidden)
        output = self.dropout(self.projection(self.mixing(self._branches(hidden, states, features))))  # Z (8)
        return self.feed_forward(self.norm(output + hidden if self.residual == "layer" else output))  # (10)

    def start(self) -> State:
        """The state of an empty history."""
        return super().start() | ({} if self.fe_gru is None else {"fe_gru": self.fe_gru.start()})

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,). Costs O(r + K), whatever the length of the history."""
        states = self.step_read(hidden, state)
        features = None if self.fe_gru is None else self.fe_gru.step(hidden, state["fe_gru"])
        output = linear(self.mixing.step(self._branches(hidden, states, features)), self.projection)
        return self.feed_forward.step(layer_norm(output + hidden if self.residual == "layer" else output, self.norm))

    def _branches(self, hidden: Any, states: list[Any], features: Any) -> list[Any]:
        """What is mixed, of H, G(H) M and G(H^f) M^f, and F: (..., D) each, tensors or arrays"""
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
    if config["flip_ranges"] and not (config["mamba"] and config["partial_flip"]):
        raise UserError("flip_ranges must be null without a flipped direction (mamba: false or partial_flip: false)")
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
