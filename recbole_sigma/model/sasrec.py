"""SASRec (Kang, McAuley, ICDM 2018, arXiv 1808.09781): RecBole's class, with rows of similar length together."""

from recbole.model.sequential_recommender.sasrec import SASRec as RecBoleSASRec

from recbole_sigma.model.by_length import ByLength


class SASRec(ByLength, RecBoleSASRec):
    """RecBole's SASRec. Padding has no effect: attention is causal, and a padded key's weight, exp(-10000), is 0."""

    causal = True
