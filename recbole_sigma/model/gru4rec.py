"""GRU4Rec (Tan, Xu, Liu, DLRS 2016, arXiv 1606.08117): RecBole's class, with rows of similar length together."""

from recbole.model.sequential_recommender.gru4rec import GRU4Rec as RecBoleGRU4Rec
from torch import Tensor

from recbole_sigma.layers.streaming import State, steps_as
from recbole_sigma.model.chunks import ByLength


class GRU4Rec(ByLength, RecBoleGRU4Rec):
    """RecBole's GRU4Rec. Padding after a row's last item has no effect: the GRU reads it after that item."""

    @property
    def streams(self) -> bool:
        """Whether `step` updates the representation item by item."""
        return steps_as(type(self), ("forward", "step"), ("full_sort_predict", "step"))

    def start(self) -> State:
        """The state of an empty history."""
        weight = self.gru_layers.weight_hh_l0
        return {"gru": weight.new_zeros(self.gru_layers.num_layers, self.hidden_size)}

    def step(self, item: int, position: int, state: State) -> Tensor:
        """The representation (D,) after the next item."""
        output, state["gru"] = self.gru_layers(self.item_embedding.weight[item][None], state["gru"])
        return self.dense(output[0])
