"""Training in one pass over a history (`train_mode: sequence`): every position predicts the item after it."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.chunks import encode_sorted
from recbole_sigma.ops.softmax import softmax_loss


class OnePass:
    """Mixin: the loss of a batch of flat histories, for models that can represent all prefixes of a history at once.

    A batch has the items read, (T,), one history after the other without padding, the histories' lengths (R,), and the
    next item of each position, (T,), 0 where that is no target.
    """

    causal: ClassVar[bool] = False  # whether position t of an encoded history depends on items 0 to t only
    length_ratio: float
    loss_type: str
    label_smoothing: float
    cosine_temperature: float | None
    teacher: Any = None  # training/distillation.py
    item_embedding: torch.nn.Embedding
    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    POS_ITEM_ID: str
    NEG_ITEM_ID: str

    @classmethod
    def one_pass_problem(cls, config: Any) -> str | None:
        """Why a model with these settings cannot represent all prefixes of a history at once; None if it can."""
        return None if cls.causal else "a position sees the items after it"

    @classmethod
    def sequence_problem(cls, config: Any) -> str | None:
        """Why a model with these settings cannot train with `train_mode: sequence`; None if it can."""
        return cls.one_pass_problem(config)

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """Representations of all prefixes of flat histories: (T,) -> (T, D)"""
        raise NotImplementedError

    def one_pass_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss, (), of all positions that have a target."""
        rows = Rows(interaction[self.ITEM_SEQ_LEN], "prefixes")
        representation = self.encode_prefixes(interaction[self.ITEM_SEQ], rows)
        has_target = interaction[self.POS_ITEM_ID].nonzero()[:, 0]
        names = [self.POS_ITEM_ID] if self.loss_type == "CE" else [self.POS_ITEM_ID, self.NEG_ITEM_ID]
        items = [interaction[name][has_target] for name in names]
        return self.ranking_loss(representation.index_select(0, has_target), *items, interaction=interaction)

    def factors(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """What scores are products of: representations (n, D) and items (V, D).

        With `cosine_temperature` both have unit length, and their cosines are divided by it.
        """
        table = self.item_embedding.weight
        if self.cosine_temperature is None:
            return representation, table
        return F.normalize(representation, dim=-1) / self.cosine_temperature, F.normalize(table, dim=-1)

    def score_all(self, representation: Tensor) -> Tensor:
        """Scores of all items: (n, D) -> (n, V)"""
        representation, table = self.factors(representation)
        return representation @ table.T

    def ranking_loss(
        self, representation: Tensor, positive: Tensor, negative: Tensor | None = None, *, interaction: Interaction
    ) -> Tensor:
        """Mean loss, (): CE is a softmax over all items; BPR and BCE compare with one sampled item.

        (n, D), (n,), (n,) -> (); a teacher reads the histories of the n targets in `interaction`.
        """
        if negative is None:
            if self.teacher is not None:
                theirs = self.teacher.factors(interaction)
                return softmax_loss(*self.factors(representation), positive, self.teacher.share, theirs)
            return softmax_loss(*self.factors(representation), positive, self.label_smoothing)
        scores, others = ((representation * self.item_embedding(item)).sum(-1) for item in (positive, negative))
        if self.loss_type == "BPR":
            return -torch.log(1e-10 + torch.sigmoid(scores - others)).mean()  # as RecBole's BPRLoss
        return F.softplus(-scores).mean() + F.softplus(others).mean()


def encode_flat(encode: Callable[[Tensor, Tensor], Tensor], item_seq: Tensor, rows: Rows, ratio: float) -> Tensor:
    """All positions of flat histories by an `encode` that needs padded rows of similar length: (T,) -> (T, D)

    `encode`: (n, l) right-padded, (n,) -> (n, l, D). `ratio`: `length_chunks`.
    """
    order = torch.argsort(rows.lengths, stable=True)
    starts, lengths = rows.offsets[:-1][order], rows.lengths[order]
    positions = []

    def encode_chunk(chunk: slice, width: int) -> Tensor:
        step = torch.arange(width, device=item_seq.device)
        at, real = starts[chunk, None] + step, step < lengths[chunk, None]
        items = item_seq[at.masked_fill(~real, 0)].masked_fill(~real, 0)
        filled = real.flatten().nonzero()[:, 0]
        positions.append(at.flatten()[filled])
        return encode(items, lengths[chunk]).flatten(0, 1).index_select(0, filled)

    encoded = encode_sorted(encode_chunk, lengths, ratio)
    return torch.empty_like(encoded).index_copy(0, torch.cat(positions), encoded)
