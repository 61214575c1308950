"""An experiment, start to finish: what is missing is run, and what there is becomes a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.errors import Interrupted
from recbole_sigma.evaluation.groups import BOUNDS
from recbole_sigma.experiment.pool import Failure, run_missing
from recbole_sigma.experiment.spec import Planned
from recbole_sigma.experiment.store import Slot, slot_of
from recbole_sigma.report.render import Report, report_of, write_report
from recbole_sigma.runs.reader import RecordedRun


def carry_out(
    runs: Sequence[Planned], checkpoint_dir: Path, jobs: int, speed: Mapping[str, Any], engine: str = "local"
) -> list[RecordedRun]:
    """Every run of an experiment, as its folder has it; those that are not complete are trained first.

    Args:
        runs: of `Experiment.runs`.
        checkpoint_dir: where the folders of runs are, for all experiments.
        jobs: runs at the same time.
        speed: settings that do not determine what a run comes to: threads, use_gpu ...
        engine: `local`, processes of this machine; `ray`, tasks of the cluster that RAY_ADDRESS names, or of one of
            our own with `jobs` workers. A cluster's machines share the folders.

    Raises:
        Interrupted: for Ctrl-C; the same call goes on.
    """
    slots = [slot_of(planned, checkpoint_dir.absolute()) for planned in runs]
    try:
        if engine == "ray" and any(slot.complete() is None for slot in slots):
            from recbole_sigma.experiment.on_ray import starting_on_ray

            with starting_on_ray(jobs, speed) as start:
                failures = run_missing(slots, len(slots), dict(speed), start)
        else:
            failures = run_missing(slots, jobs, dict(speed))
    except KeyboardInterrupt:
        raise Interrupted(checkpoint_dir, "the same command") from None
    return recorded(slots, failures)


def recorded(slots: Sequence[Slot], failures: Sequence[Failure] = ()) -> list[RecordedRun]:
    """The runs of slots; one without a result says why."""
    reasons = {failure.slot.path: failure.reason for failure in failures}
    runs = []
    for slot in slots:
        arm, folder = slot.planned.arm, slot.complete()
        runs.append(
            RecordedRun(
                label=arm.label,
                model=arm.model,
                dataset=slot.planned.dataset,
                seed=slot.planned.seed,
                folder=folder or slot.ended(),
                settings=slot.planned.config.settings(),
                varied=dict(arm.settings),
                problem="" if folder else reasons.get(slot.path, "not run"),
            )
        )
    return runs


def write_reports(
    runs: Sequence[RecordedRun], title: str, command: str, out: Path, groups: bool = False, user: str = ""
) -> Report:
    """Markdown, HTML, CSV and LaTeX beside each other: `out` with four endings.

    With `groups` also by users' history lengths; with `user` also that one's history and lists.
    """
    report = report_of(runs, title, command, bounds=BOUNDS if groups else (), user=user or None)
    for form in ("md", "html", "csv", "tex"):
        write_report(report, out.with_suffix(f".{form}"), form)
    return report
