"""What the models of a run are asked, in words: the part of result.json by which a table refuses to mix protocols."""

from typing import Any

_LEFT_OUT = {
    "valid_and_test": "second to last item validation, last item test",
    "valid_only": "last item validation, no test",
    "test_only": "last item test, no validation",
}
_DRAWN = {
    "uni": "{n} items drawn evenly and the target: sampled metrics, which do not rank models reliably",
    "pop": "{n} items drawn by popularity and the target: sampled metrics, which do not rank models reliably",
}


def protocol(config: Any, validated: bool) -> dict[str, Any]:
    """The protocol of a run; `validated` is whether there is a validation split."""
    by_phase = {phase: _ranking(mode, config["mask_seen"]) for phase, mode in config["eval_args"]["mode"].items()}
    same = len({*by_phase.values()}) == 1
    ranking = by_phase["test"] if same else "; ".join(f"{phase}: {text}" for phase, text in by_phase.items())
    chosen = f"validation {config['valid_metric']}, patience {config['stopping_step']}"
    return {
        "split": _split(config["eval_args"], config["benchmark_filename"]),
        "time_order": config["time_order"],
        "ranking": ranking,
        "max_item_list_length": config["MAX_ITEM_LIST_LENGTH"],
        "selection": chosen if validated else "last epoch, no validation",
    }


def is_sampled(protocol: dict[str, Any]) -> bool:
    """Whether the targets of a recorded run were ranked among sampled items."""
    return "sampled" in str(protocol.get("ranking"))


def _ranking(mode: str, mask_seen: bool) -> str:
    if mode == "full":
        return f"all items, seen items {'' if mask_seen else 'not '}masked, ties at mean rank"
    return _DRAWN[mode[:3]].format(n=mode[3:])


def _split(eval_args: Any, files: Any) -> str:
    if files:
        return f"split beforehand: files {', '.join(map(str, files))}"
    (kind, value), *_ = eval_args["split"].items()
    if kind == "LS":
        return f"leave-one-out per user: {_LEFT_OUT[value]}"
    if kind == "RS":
        of_whom = "each user's samples" if eval_args["group_by"] == "user" else "all samples"
        return f"ratios {value} of {of_whom} in time order: training, validation, test"
    *first, last = value if isinstance(value, list) else [value]
    valid = f"from {first[0]} on validation" if first else "no validation"
    return f"by the time of the target: {valid}, from {last} on test, earlier ones training"
