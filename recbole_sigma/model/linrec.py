"""LinRec (Liu et al., SIGIR 2023, arXiv 2411.01537): SASRec's body with attention linear in the history's length."""

from typing import Any

from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.linear_attention import LinearAttention
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.sequence import SequenceModel


class LinRecLayer(nn.Module):
    """Linear attention -> dropout -> + input -> LayerNorm -> feed-forward."""

    gives_last = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.attention = LinearAttention(hidden_size, config["n_heads"])
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.feed_forward = FeedForward(hidden_size, dropout, config["inner_dropout"])

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item"""
        attended = self.dropout(self.attention(hidden, rows))
        return self.feed_forward(self.norm(attended + rows.output(hidden)))


class LinRec(SequenceModel):
    """Layers of linear attention on item and position embeddings."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if self.hidden_size % config["n_heads"]:
            raise UserError(f"n_heads must divide hidden_size, {self.hidden_size}, got {config['n_heads']}")
        self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)
        self.layers = nn.ModuleList(LinRecLayer(config) for _ in range(config["num_layers"]))
        self.initialise()

    def embed(self, item_seq: Tensor, position: Tensor | None = None) -> Tensor:
        """Items plus positions counted from the oldest item: (B, L) -> (B, L, D)"""
        items = self.item_embedding(item_seq) + self.position_embedding.weight[: item_seq.shape[1]]
        return self.embedding_dropout(self.embedding_norm(items))
