"""Training that begins with the weights of another run (setting `init_from`), whose data may have other items."""

import logging
from typing import Any

import torch
from torch import nn

from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import digest, read_json
from recbole_sigma.runs.folder import RunFolder

logger = logging.getLogger(__name__)


class _OneMoreItem:
    """A data set as it would be with another item."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def num(self, field: str) -> int:
        return int(self._dataset.num(field) + (field == self._dataset.iid_field))


@torch.no_grad()
def start_from_run(network: nn.Module, config: Any, dataset: Any) -> None:
    """Load the weights of the run `init_from`: item rows by item id, those of new items stay as the model made them.

    Raises UserError for another run's weights, and for shapes that do not agree.
    """
    folder, items = RunFolder(config["init_from"]), dataset.item_ids
    weights, before = folder.load_weights(), read_json(folder.path / "items.json", list)
    if (found := digest(weights)[:16]) != config["init_digest"]:
        raise UserError(f"init_digest: the weights of {folder.path} have {found}, not {config['init_digest']}")
    numbers = {item: number for number, item in enumerate(before)}
    known = [number for number, item in enumerate(items) if item in numbers]
    old = [numbers[items[number]] for number in known]
    with torch.device("meta"):
        larger = config.model_class(config, _OneMoreItem(dataset)).state_dict()
    counted = "co_occurrence."  # buffers that are counted in the new data
    state = {name: own for name, own in network.state_dict().items() if not name.startswith(counted)}
    weights = {name: saved for name, saved in weights.items() if not name.startswith(counted)}
    if getattr(network, "fits_at_once", False) or {*state} != {*weights}:
        wrong = min({*state} ^ {*weights}, default="it is not trained by steps")
        raise UserError(f"init_from: {folder.path} has not the parameters of this {config.model}: {wrong}")
    for name, own in state.items():
        shape, saved = own.shape, weights[name]
        of_items = name in larger and larger[name].shape[:1] != shape[:1]  # it has a row for each item
        special = shape[0] - len(items) if of_items else 0  # and others behind them, as BERT4Rec's mask
        if of_items:
            shape = torch.Size([len(before) + special, *shape[1:]])
        if saved.shape != shape:
            here = "; give both runs the same settings"
            raise UserError(f"init_from: {name} is {tuple(saved.shape)} in {folder.path}, here {tuple(shape)}{here}")
        if of_items:
            rows = [*old, *range(len(before), len(before) + special)]
            own[[*known, *range(len(items), len(items) + special)]] = saved[rows].to(own.device)
        else:
            own.copy_(saved)
    logger.info("started from %s: %d items known, %d new", folder.path, len(known) - 1, len(items) - len(known))
