"""One item at a time: a layer's `step` beside its `forward`.

A layer with `streams = True` has `start() -> state`, the state of an empty history, and `step(hidden, state)`, which
takes the next item's input (D,), updates the state, and returns what `forward` gives at the last item: (D,). Both work
on NumPy's arrays, on which a step costs a fraction of what it costs on tensors of this size.
"""

from typing import Any

State = dict[str, Any]  # arrays by name, in nested dicts


def steps_as(cls: type, *pairs: tuple[str, str]) -> bool:
    """Whether each `(whole, step)` pair of methods belongs together: no subclass overrides `whole` alone.

    A class with `corrects_scores` does not count: whoever steps applies its correction.
    """
    bases = [base for base in cls.__mro__ if "corrects_scores" not in vars(base)]
    defined = {name: level for level, base in reversed([*enumerate(bases)]) for name in vars(base)}
    return all(step in defined and defined[step] <= defined[whole] for whole, step in pairs)
