"""The weights of an Ensemble: those of the runs that the setting `members` names."""

from collections.abc import Sequence
from typing import Any

import torch

from recbole_sigma.errors import UserError
from recbole_sigma.runs.files import weights_digest
from recbole_sigma.runs.folder import RunFolder


def load_members(network: Any, config: Any, items: Sequence[str]) -> None:
    """Load the members' weights; the ensemble's history head adds the mean of what theirs add. `items`: ids by number.

    Raises UserError for a run with other items, or other weights than `member_settings` record.
    """
    heads = []
    for run, settings, member in zip(config["members"], config["member_settings"], network.members, strict=True):
        folder = RunFolder(run)
        folder.check_items(items)
        if (found := weights_digest(folder.weights)[:16]) != settings["digest"]:
            raise UserError(f"members: the weights of {run} have {found}, not {settings['digest']}")
        weights = folder.load_weights()
        heads.append(weights.pop("history_head.weights", torch.zeros(2)))
        member.load_state_dict({name: each for name, each in weights.items() if not name.startswith("co_occurrence.")})
    if (head := getattr(network, "history_head", None)) is not None:
        head.weights.data.copy_(torch.stack(heads).mean(0))
