"""GRU4Rec (Tan, Xu, Liu, DLRS 2016, arXiv 1606.08117): RecBole's class, with rows of similar length together."""

from recbole.model.sequential_recommender.gru4rec import GRU4Rec as RecBoleGRU4Rec
from torch import Tensor

from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.by_length import ByLength
from recbole_sigma.ops.gru import gru


class GRU4Rec(ByLength, RecBoleGRU4Rec):
    """RecBole's GRU4Rec. Padding after a row's last item has no effect: the GRU reads it after that item."""

    causal = True

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """RecBole's `forward` on flat histories: (T,) -> (T, D)"""
        hidden = self.emb_dropout(self.item_embedding(item_seq))
        for weight_ih, weight_hh in self.gru_layers.all_weights:
            hidden = gru(hidden, weight_ih, weight_hh, **rows.extent)
        return self.dense(hidden)
