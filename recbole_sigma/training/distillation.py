"""Distillation: a part of each target's weight follows the softmax of a trained model (setting `distill_from`).

Knowledge distillation (Hinton et al., arXiv 1503.02531) at temperature 1; of a model by its own kind, born-again
networks (Furlanello et al., arXiv 1805.04770).
"""

from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.config.schema import different_data
from recbole_sigma.errors import UserError
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.one_pass import OnePass
from recbole_sigma.runs.files import weights_digest
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.reader import load_model


class Teacher:
    """The model of a run, asked for the factors of its scores of each training sample; nothing of it is trained.

    Its history head and its table of co-occurrences, which are no factors, do not teach.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        """Of the student's settings and data set.

        Raises UserError for a run on other items or data, for other weights than the setting `distill_digest` says, and
        for a model that cannot read the student's samples.
        """
        run, self.share = config["distill_from"], config["distill_share"]
        loaded = load_model(run, use_gpu=config["use_gpu"], nproc=1, gpu_id=str(config["device"].index or 0))
        model = loaded.model
        if (found := weights_digest(Path(run, "model.safetensors"))[:16]) != config["distill_digest"]:
            raise UserError(f"distill_digest: the weights of {run} have {found}, not {config['distill_digest']}")
        if loaded.items != dataset.item_ids:
            raise UserError(f"distill_from: {run} was trained on other items than {config.dataset} has here")
        if other := different_data(loaded.config.settings(), config.settings()):
            raise UserError(f"distill_from: {run} has another {other}, and may have learned from what is tested here")
        RunFolder(run).check_data("distill_from", dataset)
        name, longest = loaded.config.model, loaded.config["MAX_ITEM_LIST_LENGTH"]
        if not isinstance(model, OnePass):
            raise UserError(f"distill_from: {name}'s scores are no product of representations and items")
        if longest < config["MAX_ITEM_LIST_LENGTH"]:
            raise UserError(f"distill_from: {run} reads {longest} items; write MAX_ITEM_LIST_LENGTH: {longest} or less")
        if config["train_mode"] == "sequence" and (problem := model.one_pass_problem(loaded.config)):
            raise UserError(f"distill_from: {name} cannot score all prefixes: {problem}; write train_mode: prefix")
        self._model: Any = loaded.model.to(config["device"])

    @torch.no_grad()
    def factors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Of a training batch's n targets: representations (n, D) and items (V, D), whose products are the scores."""
        model = self._model
        items, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
        if items.dim() > 1:
            return model.factors(model(items, lengths))
        wanted = interaction[model.POS_ITEM_ID].nonzero()[:, 0]
        return model.factors(model.encode_prefixes(items, Rows(lengths, "prefixes"))[wanted])
