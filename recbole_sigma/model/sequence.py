"""The base class of our models: embedding, losses, scores, and encoding rows of similar length together."""

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State, steps_as
from recbole_sigma.model.chunks import encode_in_chunks, length_ratio
from recbole_sigma.model.one_pass import OnePass, encode_flat
from recbole_sigma.ops.step import Array, layer_norm, shared_arrays


class SequenceModel(OnePass, SequentialRecommender):
    """A model of item histories. A subclass has `layer_class`, or sets `layers` and calls `initialise()`.

    Or it implements `encode`. A layer is called as `layer(hidden, rows)`: (B, L, D) -> (B, L, D) (layers/padding.py).
    Item sequences are (B, L), right-padded with item 0; L may differ between batches.
    """

    layer_class: type[nn.Module] | None = None  # with it, `layers` are `num_layers` of it, each made from the Config
    layers: nn.ModuleList

    accepts_any_length = True
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "loss_type": ("CE", "BPR", "BCE"),
        "ssm_init": ("mamba", "published"),
        "positions": ("none", "start", "end"),
    }
    embeds_padding = False  # whether padding is read like an item, in rows of MAX_ITEM_LIST_LENGTH (SIGMA's release)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.loss_type: str = config["loss_type"]
        self.label_smoothing: float = config["label_smoothing"]
        self.cosine_temperature: float | None = config["cosine_temperature"]
        self.ssm_init: str = config["ssm_init"] if "ssm_init" in config else "mamba"  # noqa: SIM401 - RecBole's Config
        self.length_ratio = length_ratio(config)
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.embedding_scale = 1.0
        self.embedding_dropout = Dropout(config["dropout_prob"])
        self.embedding_norm: nn.Module = nn.LayerNorm(self.hidden_size, eps=1e-12)
        self.positions: str = config["positions"] if "positions" in config else "none"  # noqa: SIM401
        if self.positions in ("start", "end"):
            self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)
        if self.layer_class is not None:
            self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config["num_layers"]))
            self.initialise()

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """All positions of the encoded history: (B, L, D), (B,) -> (B, L, D). A row depends on its own items only."""
        for layer in self.layers:
            hidden = layer(hidden, Rows(lengths))
        return hidden

    def encode_last(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`encode` at each row's last item: (B, L, D), (B,) -> (B, D). `gives_last` saves most of a layer's work."""
        own_encode = type(self).encode is not SequenceModel.encode
        if own_encode or not getattr(self.layers[-1], "gives_last", False):
            return Rows(lengths).last(self.encode(hidden, lengths))
        *first, last = self.layers
        for layer in first:
            hidden = layer(hidden, Rows(lengths))
        return last(hidden, Rows(lengths, "last"))

    def embed(self, item_seq: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L, D), or flat items (T,), with their `position` (T,) in the history, -> (T, D)

        Items and, if the model has them, positions: they count from the `start` of a history, or so that its `end` is
        always at the last one.
        """
        hidden = self.item_embedding(item_seq)
        if self.embedding_scale != 1:
            hidden = hidden * self.embedding_scale
        if self.positions in ("start", "end"):
            if position is None:
                position = torch.arange(item_seq.shape[1], device=item_seq.device)
            if self.positions == "end":
                shift = self.max_seq_length - (item_seq != 0).sum(-1, keepdim=True)
                position = (position + shift).clamp(max=self.max_seq_length - 1)  # of padding
            hidden = hidden + self.position_embedding(position)
        return self.embedding_norm(self.embedding_dropout(hidden))

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D), as in one padded batch, at the cost of real items."""
        if self.embeds_padding:
            padded = F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))
            return Rows(lengths).last(self.encode(self.embed(padded), torch.full_like(lengths, self.max_seq_length)))
        return encode_in_chunks(
            lambda items, own: self.encode_last(self.embed(items), own), item_seq, lengths, self.length_ratio
        )

    @property
    def streams(self) -> bool:
        """Whether `step` updates the representation item by item: every layer has a step, and no method is changed."""
        whole = ("encode", "encode_last", "forward", "represent", "full_sort_predict")
        layers = all(getattr(layer, "streams", False) for layer in self.layers)
        layers = layers and all(steps_as(type(layer), ("forward", "step")) for layer in self.layers)
        return (
            layers
            and self.positions != "end"
            and steps_as(type(self), ("embed", "embed_item"), *((name, "step") for name in whole))
        )

    def start(self) -> State:
        """The state of an empty history, for `step`."""
        return {str(number): layer.start() for number, layer in enumerate(cast(Iterable[Any], self.layers))}

    def step(self, item: int, position: int, state: State) -> Array:
        """The representation (D,) after the next item, which has `position` items before it; updates the state."""
        hidden = self.embed_item(item, position)
        for number, layer in enumerate(cast(Iterable[Any], self.layers)):
            hidden = layer.step(hidden, state[str(number)])
        return hidden

    def embed_item(self, item: int, position: int) -> Array:
        """`embed` of the item at `position`: (D,), without dropout"""
        hidden: Array = shared_arrays(self.item_embedding, ("weight",), self.item_embedding.weight)[0][item]
        if self.embedding_scale != 1:
            hidden = hidden * self.embedding_scale
        if self.positions == "start":  # positions beyond the longest history of training are like its last
            table = shared_arrays(self.position_embedding, ("weight",), self.position_embedding.weight)[0]
            hidden = hidden + table[min(position, self.max_seq_length - 1)]
        return layer_norm(hidden, self.embedding_norm)

    @classmethod
    def one_pass_problem(cls, config: Any) -> str | None:
        """Why `train_mode: sequence` is impossible; positions from the end differ between the prefixes of a history."""
        if "positions" in config and config["positions"] == "end":
            return "positions is end: an item's position would differ between prefixes"
        return super().one_pass_problem(config)

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """Representations of all prefixes of flat histories: (T,) -> (T, D)

        Layers with `gives_prefixes` work on the flat batch; others, and an `encode` of a subclass, on padded rows.
        """
        own_encode = type(self).encode is not SequenceModel.encode
        if own_encode or not all(getattr(layer, "gives_prefixes", False) for layer in self.layers):

            def encode(items: Tensor, lengths: Tensor) -> Tensor:
                return self.encode(self.embed(items), lengths)

            return encode_flat(encode, item_seq, rows, self.length_ratio)
        hidden = self.embed(item_seq, rows.position)
        for layer in self.layers:
            hidden = layer(hidden, rows)
        return hidden

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss, (), of rows or, in flat histories (`train_mode: sequence`), of positions that have a target."""
        if interaction[self.ITEM_SEQ].dim() == 1:
            return self.one_pass_loss(interaction)
        names = [self.POS_ITEM_ID] if self.loss_type == "CE" else [self.POS_ITEM_ID, self.NEG_ITEM_ID]
        items = [interaction[name] for name in names]
        return self.ranking_loss(self.represent(interaction), *items, interaction=interaction)

    def represent(self, interaction: Interaction) -> Tensor:
        """Representations of a batch's histories, (B, D)."""
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of one item per row, (B,)."""
        representation, table = self.factors(self.represent(interaction))
        return (representation * table[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        return self.score_all(self.represent(interaction))

    def initialise(self) -> None:
        """Weights N(0, 0.02), biases 0, as SASRec; Mamba blocks keep mamba-ssm's unless `ssm_init` is `published`."""
        blocks = [module for module in self.modules() if isinstance(module, Mamba)]
        inside = {id(module) for block in blocks for module in block.modules()}
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and id(module) not in inside:
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.ssm_init == "published":
            for block in blocks:
                block.init_published()
