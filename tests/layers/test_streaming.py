"""`step` over one item gives what `forward` gives at the last item of the sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.layers.fe_gru import CONVOLUTIONS, FeatureExtractGRU
from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.layers.flipped_scan import start_flipped, step_flipped
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import steps_as
from recbole_sigma.model.mamba4rec import Mamba4Rec, Mamba4RecLayer
from tests.helpers.models import N_ITEMS, Items, build

STREAMING = [
    ("Mamba4Rec", {}), ("Mamba4Rec", {"num_layers": 3}), ("RecMamba", {}), ("GRU4Rec", {"num_layers": 2}),
    ("EMARec", {}), ("EMARec", {"n_decays": 1, "num_layers": 1}),
    ("SIGMA", {"form": "paper"}), ("SIGMA", {"form": "released"}), ("SIGMA", {"r": 0}), ("SIGMA", {"r": 1}),
    ("SIGMA", {"form": "paper", "r": 0}), ("SIGMA", {"form": "paper", "r": 1}),
    ("SIGMA", {"form": "paper", "d_conv": 1}),
    ("SIGMA", {"share_mamba": False}), ("SIGMA", {"partial_flip": False}), ("SIGMA", {"ds_gate": False}),
    ("SIGMA", {"fe_gru": False}), ("SIGMA", {"fe_conv": "conv"}), ("SIGMA", {"fe_conv": "residual"}),
    ("SIGMA", {"mamba": False}), ("SIGMA", {"mixing": "fixed", "r": 12}),
    *(("SIGMA", {"form": "paper", "residual": each}) for each in ("layer", "mamba", "gru")),
    *(("SIGMA", {"form": "released", "residual": each}) for each in ("layer", "mamba", "gru")),
    ("SIGMA", {"fe_conv": "conv", "fe_conv_width": 5, "gru_reset": "before"}), ("SIGMA", {"gru_reset": "before"}),
    ("Mamba4Rec", {"layer_norm": False}), ("Mamba4Rec", {"feed_forward": False}),
    ("Mamba4Rec", {"positions": "start"}), ("RecMamba", {"num_layers": 2, "positions": "none"}),
    ("SIGMA", {"flip_ranges": [0, 2, 5]}), ("SIGMA", {"form": "paper", "flip_ranges": [3, 0]}),
    ("SIGMA", {"mixing": "gated"}), ("SIGMA", {"partial_flip": False, "flip": "padded"}),
]  # fmt: skip
LONG = [
    ("Mamba4Rec", {"num_layers": 2}), ("GRU4Rec", {}), ("RecMamba", {}), ("EMARec", {}),
    ("SIGMA", {"form": "paper"}), ("SIGMA", {"r": 0}),
]  # fmt: skip
RECOMPUTED = [
    ("SIGMA", {"num_layers": 2}), ("SIGMA", {"flip": "padded"}), ("ECHO", {}), ("LinRec", {}),
    ("SIGMA", {"flip": "padded", "padding": "embedding"}), ("Mamba4Rec", {"selective": False}),
    ("Mamba4Rec", {"positions": "end"}), ("RecMamba", {"positions": "end"}),
]  # fmt: skip


def last(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer(hidden[None], Rows(torch.tensor([len(hidden)]), "last"))[0]


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 5), r=st.integers(0, 6), length=st.integers(1, 20), seed=st.integers(0, 9))
def test_a_flipped_scan_item_by_item_is_the_scan_of_the_flipped_history(width: int, r: int, length: int, seed: int):
    torch.manual_seed(seed)
    block, hidden, flip = Mamba(8, 4, width), torch.randn(length, 8), PartialFlip(r)
    state = start_flipped(block)
    with torch.no_grad():
        for n in range(1, length + 1):
            flipped = flip(hidden[None, :n], torch.tensor([n]))[0]
            output, end = step_flipped(block, r, hidden[n - 1].numpy(), state)
            assert torch.equal(torch.from_numpy(end[-2:]), flipped[-2:])
            torch.testing.assert_close(torch.from_numpy(output), last(block, flipped), atol=1e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 5), length=st.integers(1, 12))
def test_a_mamba_block_steps(width: int, length: int):
    torch.manual_seed(0)
    block, hidden = Mamba(8, 4, width), torch.randn(length, 8)
    state = block.start()
    with torch.no_grad():
        for n in range(1, length + 1):
            stepped = torch.from_numpy(block.step(hidden[n - 1].numpy(), state))
            torch.testing.assert_close(stepped, last(block, hidden[:n]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_the_fe_gru_steps_although_its_convolution_looks_ahead(conv: str, width: int):
    torch.manual_seed(0)
    layer, hidden = FeatureExtractGRU(8, width, conv, bias=True), torch.randn(9, 8)
    state = layer.start()
    with torch.no_grad():
        for n in range(1, 10):
            stepped = torch.from_numpy(layer.step(hidden[n - 1].numpy(), state))
            torch.testing.assert_close(stepped, last(layer, hidden[:n]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), STREAMING, ids=str)
def test_a_model_item_by_item_is_the_model_on_the_history(
    sample_config: Callable[..., Any], name: str, options: dict[str, Any]
):
    model: Any = build(sample_config, name, **options)
    items = torch.randint(1, N_ITEMS, (12,))
    assert model.streams
    with torch.no_grad():
        state = model.start()
        for n in range(1, 13):
            stepped = torch.from_numpy(model.step(int(items[n - 1]), n - 1, state))
            torch.testing.assert_close(stepped, model(items[None, :n], torch.tensor([n]))[0], atol=1e-5, rtol=1e-5)


def test_large_weights_of_the_flips_do_not_overflow(sample_config: Callable[..., Any]):
    model: Any = build(sample_config, "SIGMA", flip_ranges=[0, 2])
    model.layers[0].flip_weights.bias.data[0] = 200  # exp(200) is no float32
    with torch.no_grad():
        stepped = torch.from_numpy(model.step(3, 0, model.start()))
        torch.testing.assert_close(stepped, model(torch.tensor([[3]]), torch.tensor([1]))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), LONG, ids=str)
def test_ten_thousand_items_later_it_still_is(sample_config: Callable[..., Any], name: str, options: dict[str, Any]):
    model: Any = build(sample_config, name, **options)
    items, length = torch.randint(1, N_ITEMS, (1, 10_000)), torch.tensor([10_000])
    with torch.inference_mode():
        state = model.start()
        for position, item in enumerate(items[0].tolist()):
            stepped = model.step(item, position, state)
        if name == "RecMamba":  # positions beyond the longest history of training are like its last one
            positions = torch.arange(10_000).clamp(max=11)
            hidden = model.item_embedding(items) * 4.0 + model.position_embedding(positions)
            whole = model.encode_last(hidden, length)
        else:
            whole = model(items, length)
    torch.testing.assert_close(torch.from_numpy(stepped), whole[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), RECOMPUTED, ids=str)
def test_a_model_whose_past_changes_with_the_next_item_does_not_stream(
    sample_config: Callable[..., Any], name: str, options: dict[str, Any]
):
    assert not build(sample_config, name, **options).streams


def test_a_subclass_that_changes_the_whole_pass_alone_does_not_stream(sample_config: Callable[..., Any]):
    class Scaled(Mamba4RecLayer):
        def forward(self, hidden: Any, rows: Any) -> Any:
            return 2 * super().forward(hidden, rows)

    class Both(Scaled):
        def step(self, hidden: Any, state: Any) -> Any:
            return 2 * super().step(hidden, state)

    class Model(Mamba4Rec):
        layer_class = Scaled

    assert not steps_as(Scaled, ("forward", "step")) and steps_as(Both, ("forward", "step"))
    model: Any = Model(sample_config(Mamba4Rec, hidden_size=16), Items())
    assert not model.streams
