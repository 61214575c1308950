"""Small models and batches for tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.errors import UserError
from recbole_sigma.registry import find_model

OURS = ("SIGMA", "Mamba4Rec", "ECHO", "RecMamba", "EMARec", "LinRec")
N_ITEMS = 40
SMALL = {"hidden_size": 16, "MAX_ITEM_LIST_LENGTH": 12, "train_batch_size": 8, "dropout_prob": 0.0}
SMALL_SSM = {"d_state": 4, "d_conv": 3}

# Every setting that changes a model.
SWITCHES = [
    ("SIGMA", {}), ("SIGMA", {"form": "paper"}), ("SIGMA", {"form": "released"}),
    ("SIGMA", {"form": "paper", "flip": "padded"}), ("SIGMA", {"form": "released", "flip": "padded"}),
    ("SIGMA", {"r": 0}), ("SIGMA", {"r": 3}),
    ("SIGMA", {"form": "paper", "share_mamba": False}), ("SIGMA", {"share_mamba": False}),
    ("SIGMA", {"partial_flip": False}), ("SIGMA", {"form": "paper", "partial_flip": False}),
    ("SIGMA", {"ds_gate": False}), ("SIGMA", {"form": "paper", "ds_gate": False}),
    ("SIGMA", {"fe_gru": False}), ("SIGMA", {"form": "paper", "fe_gru": False}),
    ("SIGMA", {"fe_conv": "conv"}), ("SIGMA", {"fe_conv": "residual"}), ("SIGMA", {"fe_conv": "none"}),
    ("SIGMA", {"ssm_init": "published"}), ("SIGMA", {"num_layers": 2}), ("SIGMA", {"form": "paper", "num_layers": 2}),
    ("SIGMA", {"mixing": "gated"}), ("SIGMA", {"mixing": "attention"}), ("SIGMA", {"form": "paper", "mixing": "gated"}),
    ("SIGMA", {"loss_type": "BPR"}), ("SIGMA", {"mamba": False}), ("SIGMA", {"mixing": "fixed"}),
    ("SIGMA", {"fe_conv": "conv", "fe_conv_width": 5, "gru_reset": "before"}), ("SIGMA", {"residual": "layer"}),
    ("SIGMA", {"residual": "gru", "form": "paper"}), ("SIGMA", {"residual": "mamba"}),
    ("SIGMA", {"flip_ranges": [0, 2, 5]}), ("SIGMA", {"form": "paper", "flip_ranges": [0, 3]}),
    ("Mamba4Rec", {}), ("Mamba4Rec", {"ssm_init": "published"}), ("Mamba4Rec", {"num_layers": 3}),
    ("Mamba4Rec", {"loss_type": "BPR"}), ("Mamba4Rec", {"positions": "start"}), ("Mamba4Rec", {"positions": "end"}),
    ("Mamba4Rec", {"layer_norm": False, "num_layers": 2}), ("Mamba4Rec", {"feed_forward": False}),
    ("Mamba4Rec", {"selective": False}),
    ("ECHO", {}), ("ECHO", {"ssm_init": "mamba"}), ("ECHO", {"num_layers": 2}),
    ("ECHO", {"dropout_after_residual": True}), ("ECHO", {"loss_type": "BPR"}),
    ("RecMamba", {}), ("RecMamba", {"ssm_init": "published"}), ("RecMamba", {"loss_type": "BPR"}),
    ("RecMamba", {"loss_type": "BCE"}), ("RecMamba", {"positions": "end", "num_layers": 2}),
    ("EMARec", {}), ("EMARec", {"n_decays": 1, "num_layers": 1}), ("EMARec", {"loss_type": "BPR"}),
    ("LinRec", {}), ("LinRec", {"num_layers": 1, "n_heads": 4}), ("LinRec", {"loss_type": "BPR"}),
    ("LinRec", {"inner_dropout": False}),
]  # fmt: skip


class Items:
    """The part of a data set that a model needs."""

    def num(self, field: str) -> int:
        return N_ITEMS


def build(config: Callable[..., Any], name: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    """A model with small layers and dropout off, in evaluation mode."""
    torch.manual_seed(seed)
    ssm = SMALL_SSM if name in OURS and name not in ("LinRec", "EMARec") else {}
    return find_model(name)(config(name, **{**SMALL, **ssm, **settings}), Items()).eval()


def histories(lengths: list[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random right-padded histories: (B, L), (B,)."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.tensor(lengths)
    items = torch.randint(1, N_ITEMS, (len(lengths), width), generator=generator)
    return items.masked_fill(torch.arange(width) >= own[:, None], 0), own


def batch(items: Tensor, lengths: Tensor, seed: int = 1) -> Interaction:
    """A training batch as our loader makes it."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randint(1, N_ITEMS, (2, len(items)), generator=generator)
    return Interaction({"item_id_list": items, "item_length": lengths, "item_id": positive, "neg_item_id": negative})


def loss_and_gradients(model: torch.nn.Module, rows: Interaction) -> dict[str, Tensor]:
    loss = model.calculate_loss(rows)
    loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **gradients}


@contextmanager
def refused(*words: str, error: type[Exception] = UserError) -> Iterator[None]:
    """An error of one line that names all `words`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message
