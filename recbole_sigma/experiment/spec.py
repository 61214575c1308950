"""What an experiment is: arms (a model with settings), data sets and seeds, as plain data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_sigma.config.early import check_early
from recbole_sigma.config.schema import check
from recbole_sigma.config.values import Given, all_settings, properties_path, read_config_file, schemas
from recbole_sigma.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from recbole_sigma.config.config import Config

# Settings of a single run, and what takes their place in an experiment.
_INSTEAD = {
    "seed": "seeds: how many, or a list, such as --seeds=[2021]",
    "config_files": "single settings, such as --epochs=5, or a file of its own with arms and settings",
}


@dataclass(frozen=True)
class Arm:
    """One row of a comparison: a model with the settings that make it differ from the others."""

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Each arm on each data set with each seed. UserError for one given twice, and for what `check_early` finds."""

    name: str
    title: str
    arms: Sequence[Arm]
    datasets: Sequence[str]
    seeds: Sequence[int]
    settings: Mapping[str, Any]  # of all arms
    measures: str = "accuracy"  # accuracy; groups: of users, too; lists: of one user; cost: time and memory of steps

    def __post_init__(self) -> None:
        for what, labels in (("arms", [arm.label for arm in self.arms]), ("datasets", self.datasets)):
            if twice := [label for label in labels if labels.count(label) > 1]:
                raise UserError(f"{self.name}: {what}: {twice[0]!r} is given twice")
        for settings in (self.settings, *(arm.settings for arm in self.arms)):
            for name in {*settings} & {*_INSTEAD}:
                raise UserError(f"{name}: an experiment takes {_INSTEAD[name]}")
        for arm in self.arms:
            given = all_settings((), {**self.settings, **arm.settings})
            for dataset in self.datasets:
                with _named(arm):
                    check_early(arm.model, dataset, given)

    def runs(self) -> Iterator[tuple[Arm, "Config"]]:
        """One run per arm, data set and seed; all arms of a seed come before the next seed. Raises UserError."""
        from recbole_sigma.config.config import Config

        for seed, dataset, arm in product(self.seeds, self.datasets, self.arms):
            settings = {**self.settings, **arm.settings, "seed": seed}
            with _named(arm):
                config = Config(arm.model, dataset, settings=settings)
            yield arm, config


@contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """A UserError in the block names the arm."""
    try:
        yield
    except UserError as error:
        raise UserError(f"arm {arm.label!r}: {error}") from None


def comparison(
    models: Sequence[str], datasets: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any]
) -> Experiment:
    """Models with their default settings side by side."""
    arms = [Arm(model.rpartition(":")[2], model) for model in models]
    return Experiment("compare", "Comparison", arms, datasets, seeds, settings)


def names() -> list[str]:
    """The names of the experiments in properties/experiment/; best-DATASET.yaml are settings, for --config_files."""
    return sorted(file.stem for file in (properties_path() / "experiment").glob("*.yaml") if file.stem[:5] != "best-")


def read_experiment(
    name: str,
    datasets: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    confirmed: Sequence[str] = (),
) -> Experiment:
    """Read an experiment of properties/experiment/, or a YAML file; arguments win. UserError with file and line.

    A `package.module:Class` of an arm runs code when it is imported, and is refused unless it is `confirmed`.
    """
    file = properties_path() / "experiment" / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
    elif name not in names():
        raise UserError(f"unknown experiment {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
    content = read_config_file(file, schemas()["experiment file"])
    for key, given in {**content, "arms": content.get("arms", Given(None, f"{file}:1"))}.items():
        check("experiment file", Given({key: given.value}, given.origin), None, {})
    value = {key: given.value for key, given in content.items()}
    models = [own["model"] for own in value["arms"].values()]
    if code := [model for model in dict.fromkeys(models) if ":" in model and model not in confirmed]:
        right = f"to run it, add --model={','.join(code)}"
        raise content["arms"].error(f"model {code[0]!r} is code of its own; {right}")
    for key in settings or {}:
        if all(key in own for own in value["arms"].values()):
            raise UserError(f"--{key}: every arm of {file.name} has its own; change it in a copy of the file")
    if other := [model for model in confirmed if model not in models]:
        raise UserError(f"--model={other[0]}: no arm of {file.name} has this model")
    return Experiment(
        name=file.stem,
        title=value.get("title", file.stem),
        arms=[Arm(str(label), own.pop("model"), own) for label, own in value["arms"].items()],
        datasets=datasets or value.get("datasets", ["ml-100k"]),
        seeds=seeds or seeds_of(value.get("seeds", 1)),
        settings={**value.get("settings", {}), **(settings or {})},
        measures=value.get("measures", "accuracy"),
    )


def seeds_of(value: Any) -> list[int]:
    """`5` means 2020 (RecBole's default) to 2024; a list means itself. Raises UserError for anything else."""
    check("--seeds", Given(value), None, {})
    return value if isinstance(value, list) else list(range(2020, 2020 + value))
