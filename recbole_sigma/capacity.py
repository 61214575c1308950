"""Whether a model fits into the machine, found before the machine is filled; and memory that ran out, in one line."""

import os
import resource
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recbole_sigma.errors import UserError

_COPIES = 4  # weights, their gradients, and two running means of an optimiser such as Adam
_SIZES = (
    "hidden_size", "embedding_size", "inner_size", "d_state", "d_conv", "expand", "num_layers", "n_layers",
    "MAX_ITEM_LIST_LENGTH", "train_batch_size", "eval_batch_size",
)  # fmt: skip
# What torch and NumPy say, as errors of general kinds, when a tensor is too large for the memory or for any memory.
_TOO_LARGE = (
    "can't allocate memory", "Storage size calculation overflowed", "out of memory", "Overflow when unpacking long",
    "array is too big", "Maximum allowed dimension exceeded", "Maximum allowed size exceeded", "invalid buffer size",
    "Trying to create tensor with negative dimension", "exceeds maximum size", "numel: integer multiplication overflow",
)  # fmt: skip


class Items:
    """A data set of which only the number of items is known, and one sample, for models that look at samples."""

    def __init__(self, n_items: int) -> None:
        self._n_items = n_items
        self.inter_feat: Mapping[str, torch.Tensor] = defaultdict(
            lambda: torch.ones(1, dtype=torch.long, device="cpu")  # also where "meta" is the default
        )

    def num(self, _field: str) -> int:
        """Items with the padding item."""
        return self._n_items + 1


def n_parameters(config: Any, dataset: Any) -> int:
    """Trained numbers of the model, without the memory that they would take."""
    with memory_told(config), torch.device("meta"):
        model = config.model_class(config, dataset)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def build_model(config: Any, dataset: Any) -> nn.Module:
    """The model of `config` on its device. Raises UserError if it cannot fit, or if the data lacks what it needs."""
    ours = config.model_class.__module__.startswith(f"{__package__}.")
    if ours:  # RecBole's other models mix in NumPy's arrays
        _check_size(config, n_parameters(config, dataset))
    with memory_told(config):
        try:
            model: nn.Module = config.model_class(config, dataset)
        except (ValueError, KeyError, NotImplementedError, AssertionError) as error:
            if ours:
                raise
            # RecBole's refusals of settings and data: of models such as S3Rec, a column that is not there
            raise UserError(f"model: {config.model} cannot be built with these settings and data ({error})") from None
        return model.to(config["device"])


@contextmanager
def memory_told(config: Any) -> Iterator[None]:
    """Memory that runs out inside, as a UserError with the settings that decide how much is needed."""
    try:
        yield
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, MemoryError) and not any(each in str(error) for each in _TOO_LARGE):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"not enough memory: make {_largest(config)} smaller ({reason[:200]})") from None


def _check_size(config: Any, parameters: int) -> None:
    needed, there = parameters * _COPIES * torch.get_default_dtype().itemsize, _memory(config["device"])
    if needed > there:
        raise UserError(
            f"the model would have {parameters:,} parameters and take {needed / 2**30:,.1f} GB in training, of "
            f"{there / 2**30:,.1f} GB on this machine: make {_largest(config)} smaller, or train on fewer items"
        )


def _memory(device: torch.device) -> int:
    """Bytes that the device has, or the process may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return there if limit == resource.RLIM_INFINITY else min(there, limit)


def _largest(config: Any) -> str:
    """The settings of sizes that are far above their usual values, the largest first, with their values."""
    usual = {"MAX_ITEM_LIST_LENGTH": 50, "train_batch_size": 2048, "eval_batch_size": 4096, "hidden_size": 64}
    given = {name: config[name] for name in _SIZES if isinstance(config[name], int)}
    order = sorted(given, key=lambda name: given[name] / usual.get(name, 16), reverse=True)
    return " or ".join(f"{name}={given[name]}" for name in order[:2])
