"""BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690): RecBole's class, with settings and batches checked."""

from typing import Any

from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.bert4rec import BERT4Rec as RecBoleBERT4Rec
from torch import Tensor

from recbole_sigma.errors import UserError


class BERT4Rec(RecBoleBERT4Rec):
    """RecBole's BERT4Rec. Masked items of a training batch come from RecBole's transform `mask_itemseq`."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if self.mask_item_length < 1:
            raise UserError(
                f"mask_ratio times MAX_ITEM_LIST_LENGTH must be at least 1 (masked items per row), got "
                f"{self.mask_ratio} times {self.max_seq_length}"
            )

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """RecBole's loss, (); 0 for a batch without masked items (a small last one), where RecBole divides by 0."""
        if not (interaction[self.MASK_INDEX] > 0).any():  # RecBole's loss ignores a mask at the first item
            return self.output_bias.sum() * 0
        return super().calculate_loss(interaction)
