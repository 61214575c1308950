"""GRU4Rec (Tan, Xu, Liu, DLRS 2016, arXiv 1606.08117): RecBole's class, rows of similar length together."""

from recbole.model.sequential_recommender.gru4rec import GRU4Rec as RecBoleGRU4Rec

from recbole_sigma.model.by_length import ByLength


class GRU4Rec(ByLength, RecBoleGRU4Rec):
    """RecBole's GRU4Rec. Padding after a row's last item is invisible to it: the GRU reads it after that item."""
