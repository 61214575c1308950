"""The weights of an Ensemble: those of the runs that the setting `members` names."""

from typing import Any

import torch

from recbole_sigma.config.schema import different_data
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs.files import weights_digest
from recbole_sigma.runs.folder import RunFolder


def load_members(network: Any, config: Any, dataset: Any) -> None:
    """Load the members' weights; the ensemble's history head adds the mean of what theirs add.

    Raises UserError for a run with other items, on other data or another split, and for other weights than
    `member_settings` record.
    """
    runs, settings = config["members"] or [], config["member_settings"]
    if len(runs) != len(settings):
        raise UserError(f"members: {len(runs)} directories for {len(settings)} members; leave out member_settings")
    heads = []
    for run, own, member in zip(runs, settings, network.members, strict=True):
        if name := different_data(own, config.settings()):
            raise UserError(f"members: {run} has another {name}, and may have learned from what is tested here")
        if (share := own.get("co_occurrence")) and not config["co_occurrence"]:
            raise UserError(
                f"members: {run} has a table of co-occurrences; write co_occurrence: {share} for the ensemble"
            )
        folder = RunFolder(run)
        folder.check_items(dataset.item_ids)
        folder.check_data("members", dataset)
        if (found := weights_digest(folder.weights)[:16]) != own["digest"]:
            raise UserError(f"members: the weights of {run} have {found}, not {own['digest']} as in member_settings")
        weights = folder.load_weights()
        heads.append(weights.pop("history_head.weights", torch.zeros(2)))
        weights = {name: each for name, each in weights.items() if not name.startswith("co_occurrence.")}
        try:
            member.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"members: {run} has not the weights of {own['model']}: {one_line(error)}") from None
    if (head := getattr(network, "history_head", None)) is not None:
        head.weights.data.copy_(torch.stack(heads).mean(0))
