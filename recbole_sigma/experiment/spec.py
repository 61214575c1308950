"""What an experiment is: arms (a model with settings), data sets and seeds, as plain data.

# properties/experiment/flip-range.yaml
title: Flip range r of SIGMA
arms:
  r = 0: {model: SIGMA, r: 0}
  r = 5: {model: SIGMA, r: 5}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_sigma.config.config import Config, properties_path
from recbole_sigma.config.values import read_config_file
from recbole_sigma.errors import UserError, did_you_mean

FIRST_SEED = 2020  # RecBole's default; five seeds are 2020 to 2024
# Keys of an experiment's file and what their values must be.
_KEYS: dict[str, tuple[type, str]] = {
    "title": (object, ""),
    "arms": (dict, "a mapping"),
    "datasets": (list, "a list of names"),
    "seeds": (object, ""),
    "settings": (dict, "a mapping"),
}


@dataclass(frozen=True)
class Arm:
    """One row of a comparison: a model with the settings that make it differ from the others."""

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run of an experiment."""

    arm: Arm
    dataset: str
    seed: int
    config: Config


@dataclass(frozen=True)
class Experiment:
    """Every arm on every data set with every seed; all arms share `settings`.

    Raises UserError without an arm or a data set, and for one that is given twice.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] = (FIRST_SEED,)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, labels in (("arms", [arm.label for arm in self.arms]), ("datasets", self.datasets)):
            if not labels:
                raise UserError(f"{self.name}: {what}: none is given")
            if twice := [label for label in labels if labels.count(label) > 1]:
                raise UserError(f"{self.name}: {what}: {twice[0]!r} is given twice")

    def runs(self) -> Iterator[Planned]:
        """One run per arm, data set and seed; all arms of a seed come before the next seed.

        Raises UserError for settings that an arm cannot have, before the first run.
        """
        for seed in self.seeds:
            for dataset in self.datasets:
                for arm in self.arms:
                    settings = {**self.settings, **arm.settings, "seed": seed}
                    try:
                        yield Planned(arm, dataset, seed, Config(arm.model, dataset, settings=settings))
                    except UserError as error:
                        raise UserError(f"arm {arm.label!r}: {error}") from None


def comparison(
    models: Sequence[str], datasets: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any]
) -> Experiment:
    """Models with their default settings side by side."""
    arms = tuple(Arm(model.rpartition(":")[2], model) for model in models)
    return Experiment("compare", "Comparison", arms, tuple(datasets), tuple(seeds), settings)


def names() -> list[str]:
    """The names of the experiments in properties/experiment/."""
    return sorted(file.stem for file in (properties_path() / "experiment").glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Read an experiment of properties/experiment/, or a YAML file. Raises UserError naming file and line."""
    file = properties_path() / "experiment" / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
    elif name not in names():
        raise UserError(f"unknown experiment {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
    content = read_config_file(file)
    for key, given in content.items():
        if key not in _KEYS:
            raise given.error(f"unknown {key!r} in an experiment{did_you_mean(key, _KEYS)}")
        kind, words = _KEYS[key]
        items = given.value if key == "datasets" and isinstance(given.value, list) else []
        if not isinstance(given.value, kind) or not all(isinstance(item, str) for item in items):
            raise given.error(f"{key} must be {words}, got {given.value!r}")
    if "arms" not in content:
        raise UserError(f"{file}:1: an experiment has arms, 'label: {{model: NAME, setting: value}}' each")
    value = {key: given.value for key, given in content.items()}
    arms = []
    for label, settings in value["arms"].items():
        if not isinstance(settings, dict) or not isinstance(settings.get("model"), str):
            message = f"arm {label!r} must be {{model: NAME, setting: value, ...}}, got {settings!r}"
            raise content["arms"].error(message)
        settings = dict(settings)
        arms.append(Arm(str(label), settings.pop("model"), settings))
    return Experiment(
        name=file.stem,
        title=str(value.get("title", file.stem)),
        arms=tuple(arms),
        datasets=tuple(value.get("datasets", ["ml-100k"])),
        seeds=seeds_of(value.get("seeds", [FIRST_SEED])),
        settings=value.get("settings", {}),
    )


def with_changes(
    experiment: Experiment, datasets: Sequence[str], seeds: Any, settings: Mapping[str, Any]
) -> Experiment:
    """The experiment on other data sets, with other seeds, or with further settings for all arms."""
    return replace(
        experiment,
        datasets=tuple(datasets) or experiment.datasets,
        seeds=experiment.seeds if seeds is None else seeds_of(seeds),
        settings={**experiment.settings, **settings},
    )


def seeds_of(value: Any) -> tuple[int, ...]:
    """`5` stands for 2020 to 2024; a list stands for itself."""
    if type(value) is int and 1 <= value <= 1000:
        return tuple(range(FIRST_SEED, FIRST_SEED + value))
    seeds = value if isinstance(value, list) else []
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be how many (5), or a list of different ones ([1, 2, 3]), got {value!r}")
    return tuple(seeds)
