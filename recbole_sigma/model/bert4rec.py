"""BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690): RecBole's class, with rows of similar length together."""

from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.bert4rec import BERT4Rec as RecBoleBERT4Rec
from torch import Tensor, nn

from recbole_sigma.errors import UserError
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.by_length import ByLength
from recbole_sigma.model.chunks import encode_in_chunks
from recbole_sigma.model.one_pass import encode_flat
from recbole_sigma.ops.softmax import softmax_loss


class BERT4Rec(ByLength, RecBoleBERT4Rec):
    """RecBole's network, trained as in the paper (`train_mode: sequence`) or as in RecBole (`prefix`).

    As in the paper, a history is read whole, with its last target, and other items of it are masked in each epoch.
    RecBole masks items of each prefix, without its target (transform `mask_itemseq`), so that a user's last training
    item is never predicted. In evaluation a mask follows the history; RecBole leaves out the first item for it.

    Padding has no effect, since positions count from the first item, and a padded key's weight, exp(-10000), is 0. So
    rows of similar length are encoded together, and masked positions alone are compared with all items; RecBole
    computes the scores of mask_ratio * MAX_ITEM_LIST_LENGTH positions of each row.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.ft_ratio: float = config["ft_ratio"]
        self.whole = config["train_mode"] == "sequence"
        if self.whole:
            self.position_embedding = nn.Embedding(self.max_seq_length + 1, self.hidden_size)  # the mask has its own
            self._init_weights(self.position_embedding)
        elif self.mask_item_length < 1:
            raise UserError(
                f"mask_ratio times MAX_ITEM_LIST_LENGTH must be at least 1 (masked items per row), got "
                f"{self.mask_ratio} times {self.max_seq_length}"
            )

    @classmethod
    def sequence_problem(cls, config: Any) -> str | None:
        """Why it cannot train with `train_mode: sequence`: RecBole's loss needs RecBole's batches."""
        by_recbole = not config["by_length"] or config["loss_type"] != "CE"
        return "its loss on whole histories needs by_length: true and loss_type: CE" if by_recbole else None

    def forward(self, item_seq: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Representations of histories, at a mask after their end: (B, L), (B,) -> (B, D).

        Without `lengths` as in RecBole: every position, of items that may be masks, (B, L) -> (B, L, D).
        """
        if lengths is None:
            return RecBoleBERT4Rec.forward(self, item_seq)

        def encode(items: Tensor, own: Tensor) -> Tensor:
            return self.gather_indexes(RecBoleBERT4Rec.forward(self, items), own - 1)

        if self.whole:
            item_seq = F.pad(item_seq, (0, 1)).scatter(1, lengths[:, None], self.mask_token)
            return encode_in_chunks(encode, item_seq, lengths + 1, self.length_ratio)
        return encode_in_chunks(encode, self.reconstruct_test_data(item_seq, lengths), lengths, self.length_ratio)

    def reconstruct_test_data(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """A mask after the last item, instead of the first item: (B, L), (B,) -> (B, L); without RecBole's loop."""
        return F.pad(item_seq, (0, 1))[:, 1:].scatter(1, item_seq_len[:, None] - 1, self.mask_token)

    def factors(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class; without `cosine_temperature` the last of D + 1 numbers of an item is its bias."""
        table = self.item_embedding.weight[: self.n_items]  # without the mask
        if self.cosine_temperature is None:
            return F.pad(representation, (0, 1), value=1.0), torch.cat([table, self.output_bias[:, None]], 1)
        return F.normalize(representation, dim=-1) / self.cosine_temperature, F.normalize(table, dim=-1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of the masked items of a batch, (); 0 if there are none, where RecBole divides by 0."""
        if self.whole:
            return self.one_pass_loss(interaction)
        index, items = interaction[self.MASK_INDEX], interaction[self.MASK_ITEM_SEQ]
        row, slot = (index > 0).nonzero(as_tuple=True)  # RecBole's loss ignores a mask at the first item
        if len(row) == 0:
            return self.output_bias.sum() * 0
        if not self.by_length or self.loss_type != "CE":
            padded = F.pad(items, (0, self.max_seq_length - items.shape[1]))
            return RecBoleBERT4Rec.calculate_loss(
                self, Interaction({**interaction.interaction, self.MASK_ITEM_SEQ: padded})
            )
        rows = Rows((items > 0).sum(1), "flat")
        hidden = encode_flat(
            lambda own, _: RecBoleBERT4Rec.forward(self, own), items[items > 0], rows, self.length_ratio
        )
        hidden = hidden.index_select(0, rows.offsets[row] + index[row, slot])
        return softmax_loss(*self.factors(hidden), interaction[self.POS_ITEMS][row, slot], self.label_smoothing)

    def one_pass_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss, (), of the masked targets of whole histories (section 3.6 of the paper; `train_mode: sequence`).

        Each target is masked with probability `mask_ratio`, but at least one of a history, the last. In `ft_ratio` of
        the histories a single one is masked, as in evaluation: after it nothing is read. The paper takes the last; here
        it is drawn, so that each target has its turn.
        """
        read = Rows(interaction[self.ITEM_SEQ_LEN], "flat")
        rows = Rows(read.lengths + 1, "flat")  # with the last target
        at = torch.arange(len(read.row), device=read.row.device) + read.row  # of the items read
        items = interaction[self.ITEM_SEQ].new_zeros(len(rows.row))
        items[at + 1] = interaction[self.POS_ITEM_ID]
        is_target = items > 0
        items[at] = interaction[self.ITEM_SEQ]

        sizes = len(items), len(rows.lengths), len(rows.lengths)
        noise, kind, end = torch.rand(sum(sizes)).to(items.device).split(sizes)  # the same on every device
        alone = kind < self.ft_ratio
        masked = is_target & (noise < self.mask_ratio) & ~rows.per_item(alone)
        cut = alone * (end * rows.sum(is_target.long())).long()  # how many targets are left out
        kept = rows.position < rows.per_item(rows.lengths - cut)
        items, masked, rows = items[kept], masked[kept], Rows(rows.lengths - cut, "flat")
        masked[rows.offsets[1:] - 1] |= rows.sum(masked.long()) == 0
        hidden = encode_flat(
            lambda own, _: RecBoleBERT4Rec.forward(self, own),
            items.masked_fill(masked, self.mask_token), rows, self.length_ratio,
        )  # fmt: skip
        return softmax_loss(*self.factors(hidden[masked]), items[masked], self.label_smoothing)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.by_length or self.cosine_temperature is not None:
            return self.score_all(self.forward(item_seq, lengths))
        padded = F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))
        return RecBoleBERT4Rec.full_sort_predict(self, {self.ITEM_SEQ: padded, self.ITEM_SEQ_LEN: lengths})
