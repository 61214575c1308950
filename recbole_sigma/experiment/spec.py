"""What an experiment is: arms (a model and settings each), data sets and seeds, as plain data.

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
from recbole_sigma.config.values import Given, read_config_file
from recbole_sigma.errors import UserError, did_you_mean

FIRST_SEED = 2020  # RecBole's default; five seeds are 2020 to 2024
_KEYS = ("title", "arms", "datasets", "seeds", "settings")


@dataclass(frozen=True)
class Arm:
    """One column of a comparison: a model with the settings that make it differ."""

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Every arm on every data set with every seed; `settings` are shared by all."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] = (FIRST_SEED,)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def runs(self) -> Iterator["Planned"]:
        """One for each arm, data set and seed: all arms of a seed before the next, so that a part is a part of all.

        Raises UserError for settings that no run can have, before the first run.
        """
        for seed in self.seeds:
            for dataset in self.datasets:
                for arm in self.arms:
                    settings = {**self.settings, **arm.settings, "seed": seed}
                    try:
                        yield Planned(arm, dataset, seed, Config(arm.model, dataset, settings=settings))
                    except UserError as error:
                        raise UserError(f"arm {arm.label!r}: {error}") from None


@dataclass(frozen=True)
class Planned:
    """One run of an experiment."""

    arm: Arm
    dataset: str
    seed: int
    config: Config


def comparison(models: Sequence[str], datasets: Sequence[str], seeds: Sequence[int], settings: Any) -> Experiment:
    """Models with their default settings against each other."""
    arms = tuple(Arm(model, model) for model in models)
    return _checked(Experiment("compare", "Comparison", arms, tuple(datasets), tuple(seeds), settings))


def names() -> list[str]:
    """The experiments that come along."""
    return sorted(file.stem for file in (properties_path() / "experiment").glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """The experiment of properties/experiment/, or of a YAML file. Raises UserError naming file and line."""
    file = properties_path() / "experiment" / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
    elif name not in names():
        raise UserError(f"unknown experiment {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
    content = read_config_file(file)
    for key, given in content.items():
        if key not in _KEYS:
            raise given.error(f"unknown {key!r} in an experiment{did_you_mean(key, _KEYS)}")
    if "arms" not in content:
        raise UserError(f"{file}:1: an experiment has arms, 'label: {{model: NAME, setting: value}}' each")
    value = {key: given.value for key, given in content.items()}
    return _checked(
        Experiment(
            file.stem,
            str(value.get("title", file.stem)),
            tuple(_arms(content["arms"])),
            tuple(_names(content.get("datasets", Given(["ml-100k"])), "datasets")),
            seeds_of(value.get("seeds", [FIRST_SEED])),
            _mapping(content.get("settings", Given({})), "settings"),
        )
    )


def with_changes(
    experiment: Experiment, datasets: Sequence[str], seeds: Any, settings: Mapping[str, Any]
) -> Experiment:
    """The experiment on other data sets, with other seeds, or with further settings for all arms."""
    changed = replace(experiment, settings={**experiment.settings, **settings})
    if datasets:
        changed = replace(changed, datasets=tuple(datasets))
    if seeds is not None:
        changed = replace(changed, seeds=seeds_of(seeds))
    return _checked(changed)


def seeds_of(value: Any) -> tuple[int, ...]:
    """`5` is 2020 to 2024; a list is itself."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return tuple(range(FIRST_SEED, FIRST_SEED + value))
    is_list = isinstance(value, list) and value and len(set(map(str, value))) == len(value)
    if not is_list or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value):
        raise UserError(f"seeds must be how many (5), or a list of different ones ([1, 2, 3]), got {value!r}")
    return tuple(value)


def _arms(given: Given) -> Iterator[Arm]:
    for label, settings in _mapping(given, "arms").items():
        if not isinstance(settings, dict) or not isinstance(settings.get("model"), str):
            raise given.error(f"arm {label!r} must be {{model: NAME, setting: value, ...}}, got {settings!r}")
        yield Arm(str(label), settings["model"], {key: each for key, each in settings.items() if key != "model"})


def _mapping(given: Given, name: str) -> dict[str, Any]:
    if not isinstance(given.value, dict):
        raise given.error(f"{name} must be a mapping, got {given.value!r}")
    return given.value


def _names(given: Given, name: str) -> list[str]:
    if not isinstance(given.value, list) or not all(isinstance(each, str) for each in given.value):
        raise given.error(f"{name} must be a list of names, got {given.value!r}")
    return given.value


def _checked(experiment: Experiment) -> Experiment:
    """Refuse what is empty, and what is given twice."""
    labels = [arm.label for arm in experiment.arms]
    for what, given in (("arms", labels), ("datasets", experiment.datasets)):
        if not given:
            raise UserError(f"{experiment.name}: {what}: none is given")
        for each in given:
            if list(given).count(each) > 1:
                raise UserError(f"{experiment.name}: {what}: {each!r} is given twice")
    return experiment
