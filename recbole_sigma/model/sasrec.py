"""SASRec (Kang, McAuley, ICDM 2018, arXiv 1808.09781): RecBole's class, with rows of similar length together."""

from recbole.model.sequential_recommender.sasrec import SASRec as RecBoleSASRec

from recbole_sigma.model.chunks import ByLength


class SASRec(ByLength, RecBoleSASRec):
    """RecBole's SASRec. Padding after a row's last item has no effect.

    Attention is causal and positions count from the first item; a padded key's weight is exp(-10000), which is 0.
    """
