"""A row of a report is labelled by the settings in which it differs from the others."""

import re
import warnings
from pathlib import Path

from recbole_sigma.commands.options import beside
from recbole_sigma.report.plots import plots_of
from recbole_sigma.report.render import report_of
from recbole_sigma.report.table import table_of
from recbole_sigma.runs.reader import read_runs
from tests.helpers.recorded_runs import write_run

BEST = [1.0, 2.0, 11.0, 4.0, 1.0, 50.0]


def test_students_are_one_row_over_seeds_unless_only_the_teacher_tells_two_apart(tmp_path: Path):
    def labels(*runs: tuple[int, str | None]) -> list[str]:
        folder = tmp_path / str(len(runs))
        for seed, digest in runs:
            write_run(folder, "A", BEST, seed=seed, settings={"distill_digest": digest})
        return [row.label for row in table_of(read_runs([folder])).rows]

    one, two = "1" * 16, "2" * 16
    assert labels((1, None), (1, one), (2, two)) == ["A distill_digest=given", "A distill_digest=none"]
    assert labels((1, None), (1, one), (2, two), (1, two)) == [
        f"A distill_digest={value}" for value in (one, two, "none")
    ]


def test_values_too_long_for_a_label_are_told_apart(tmp_path: Path):
    members = [[{"model": name, "digest": "0" * 16, "r": r} for name in "BC"] for r in (1, 2)]
    for number, text in enumerate(("x" * 50, "x" * 60)):
        write_run(tmp_path, "A", BEST, settings={"name": text, "member_settings": members[number]})
    labels = [row.label for row in table_of(read_runs([tmp_path])).rows]
    assert len({*labels}) == 2
    assert all(re.fullmatch(rf"A member_settings=B\+C \w{{4}}, name={'x' * 40}… \w{{4}}", label) for label in labels)


def test_a_name_with_a_dot_keeps_it():
    names = ("saved/lr-0.1", "saved/page.html", "saved/page")
    assert [str(beside(Path(name), "md")) for name in names] == ["saved/lr-0.1.md", "saved/page.md", "saved/page.md"]


def test_long_labels_leave_a_plot_its_room(tmp_path: Path):
    for letter in "xy":
        write_run(tmp_path, "A", BEST, settings=dict.fromkeys(("first", "second", "third"), letter * 40))
    with warnings.catch_warnings(action="error"):  # matplotlib's, for axes without a width
        assert plots_of(report_of(read_runs([tmp_path])))
