"""GRU4Rec (Tan, Xu, Liu, DLRS 2016, arXiv 1606.08117): RecBole's class, with rows of similar length together."""

from recbole.model.sequential_recommender.gru4rec import GRU4Rec as RecBoleGRU4Rec

from recbole_sigma.model.chunks import ByLength


class GRU4Rec(ByLength, RecBoleGRU4Rec):
    """RecBole's GRU4Rec. Padding after a row's last item has no effect: the GRU reads it after that item."""
