"""What settings add to the scores of any model: a table of co-occurrences, then a history head."""

from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.model.co_occurrence import CoOccurrence
from recbole_sigma.model.history_head import HistoryHead, samples_of


def corrected(model_class: type[Any], config: Any) -> type[Any]:
    """The class with CoOccurrence (setting `co_occurrence`) and HistoryHead (`head: history`) on its scores.

    The model itself is trained as without them, to the same weights: the head is fitted beside it by a second
    cross-entropy, on detached scores of a part of each batch. Without these settings the class as it is.
    """
    has_head = config["head"] == "history"
    if not has_head and not config["co_occurrence"]:
        return model_class

    class Corrected(model_class):
        corrects_scores = True

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            if config["co_occurrence"]:
                samples = dataset.inter_feat if hasattr(dataset, "field2id_token") else None
                self.co_occurrence = CoOccurrence(config["co_occurrence"], samples, self.n_items)
            if has_head:
                self.history_head = HistoryHead()

        def correct(self, scores: Tensor, history: Tensor, lengths: Tensor, head: bool = has_head) -> Tensor:
            """The scores that are used: (n, V), item ids (n, L), right-padded with 0, (n,) -> (n, V)"""
            if hasattr(self, "co_occurrence"):
                scores = self.co_occurrence(scores[:, : self.n_items], history, lengths)
            return self.history_head(scores, history, lengths) if head else scores

        def full_sort_predict(self, interaction: Interaction) -> Tensor:
            history, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
            return self.correct(super().full_sort_predict(interaction).view(history.shape[0], -1), history, lengths)

        def predict(self, interaction: Interaction) -> Tensor:
            return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

        def calculate_loss(self, interaction: Interaction) -> Any:
            loss = super().calculate_loss(interaction)
            if not has_head:
                return loss
            rows, target = samples_of(interaction, self)
            history, lengths = rows[self.ITEM_SEQ], rows[self.ITEM_SEQ_LEN]
            was_training, self.fits_head = self.training, True
            self.eval()
            with torch.no_grad():
                scores = super().full_sort_predict(rows).view(len(history), -1).float()
                scores = self.correct(scores, history, lengths, head=False)
            self.train(was_training)
            self.fits_head = False
            fit = self.history_head.fit(scores, history, lengths, target)
            first, *others = loss if isinstance(loss, tuple) else (loss,)
            first = first + (fit - fit.detach())  # the gradient, but not the value: the loss stays the model's
            return (first, *others) if others else first

    Corrected.__name__, Corrected.__qualname__ = model_class.__name__, model_class.__qualname__
    return Corrected
