"""Reports say what the runs' ranks say, in each format, and no more than that."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from recbole_sigma.cli import main
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.significance import holm
from recbole_sigma.report.plots import plots_of, varied_number
from recbole_sigma.report.render import COLUMNS, Report, render, report_of, summary, write_report
from recbole_sigma.report.table import Table, table_of
from recbole_sigma.runs.reader import RecordedRun, read_runs
from tests.helpers.recorded_runs import PROTOCOL, begin_run, write_run

BEST = [1.0, 2.0, 11.0, 4.0, 1.0, 50.0]
SECOND = [2.0, 2.0, 12.0, 9.0, 3.0, 60.0]
WORST = [30.0, 9.0, 40.0, 10.0, 11.0, 70.0]


def by_hand(ranks: list[float], metric: str, k: int = 10) -> float:
    gain = {"hit": lambda _: 1.0, "ndcg": lambda rank: 1 / np.log2(rank + 1), "mrr": lambda rank: 1 / rank}[metric]
    return sum(gain(rank) for rank in ranks if rank <= k) / len(ranks)


def random_ranks(seed: int, shift: float = 0, n: int = 60) -> list[float]:
    return (np.maximum(np.random.default_rng(seed).integers(1, 30, n) + shift, 1)).astype(float).tolist()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """SIGMA before Mamba4Rec before GRU4Rec, one seed; BERT4Rec without a result."""
    folder = tmp_path / "three"
    write_run(folder, "SIGMA", BEST, lengths=[1, 4, 5, 19, 20, 90])
    write_run(folder, "Mamba4Rec", SECOND, lengths=[1, 4, 5, 19, 20, 90])
    write_run(folder, "GRU4Rec", WORST, lengths=[1, 4, 5, 19, 20, 90])
    begin_run(folder / "BERT4Rec-1", "BERT4Rec")
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """SIGMA with r 0, 2 and 5, three seeds each."""
    folder = tmp_path / "seeds"
    for place, r in enumerate((0, 5, 2)):
        for seed in (1, 2, 3):
            ranks = random_ranks(10 * place + seed, shift=4 * place)
            write_run(folder, "SIGMA", ranks, seed=seed, settings={"r": r})
    return folder


def table(folder: Path, **options: Any) -> Table:
    return table_of(read_runs([folder]), **options)


def report(folder: Path, **options: Any) -> Report:
    return report_of(read_runs([folder]), **options)


# The numbers


@pytest.mark.parametrize("k", [1, 5, 10])
def test_means_are_those_computed_by_hand_from_ranks(three: Path, k: int):
    cells = {arm.label: arm.cells for arm in table(three, k=k).arms}
    for label, ranks in (("SIGMA", BEST), ("Mamba4Rec", SECOND), ("GRU4Rec", WORST)):
        for metric in ("hit", "ndcg", "mrr"):
            assert cells[label]["test", metric].mean == pytest.approx(by_hand(ranks, metric, k), abs=1e-15)


def test_of_one_seed_no_deviation_is_claimed(three: Path):
    found = report(three)
    assert all(cell.deviation is None for arm in found.tables[0].arms for cell in arm.cells.values())
    for form in ("md", "tex", "html"):
        text = render(found, form)
        assert "±" not in text and r"\pm" not in text
    assert "±" not in summary(found)


def test_deviation_is_over_seeds(seeds: Path):
    arm = table(seeds).arms[0]
    each = [by_hand(random_ranks(seed), "ndcg") for seed in (1, 2, 3)]
    assert arm.label == "SIGMA r=0"
    assert arm.cells["test", "ndcg"].mean == pytest.approx(np.mean(each))
    assert arm.cells["test", "ndcg"].deviation == pytest.approx(np.std(each, ddof=1))
    assert f"{np.mean(each):.4f} ± {np.std(each, ddof=1):.4f}" in render(report(seeds), "md").replace("*", "")


def test_best_and_second_are_marked_and_improvement_is_of_their_means(three: Path):
    found = table(three)
    places = {arm.label: arm.cells["test", "ndcg"].place for arm in found.arms if arm.cells}
    assert places == {"SIGMA": 1, "Mamba4Rec": 2, "GRU4Rec": 0}
    expected = by_hand(BEST, "ndcg") / by_hand(SECOND, "ndcg") - 1
    assert found.improvement["test", "ndcg"] == pytest.approx(expected)


def test_equal_bests_share_their_place_and_none_is_second(tmp_path: Path):
    for model in ("A", "B"):
        write_run(tmp_path, model, BEST)
    write_run(tmp_path, "C", WORST)
    found = table(tmp_path)
    assert [arm.cells["test", "mrr"].place for arm in found.arms] == [1, 1, 0]
    assert found.improvement["test", "mrr"] == 0.0
    assert found.significance["mrr"].users["B"].p_holm == 1.0
    assert found.mark("A", ("test", "mrr")) == ""


def test_an_improvement_over_nothing_is_not_told(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "B", [100.0] * 6)
    assert table(tmp_path).improvement["test", "hit"] is None


def test_of_one_arm_nothing_is_best(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    found = report(tmp_path)
    assert {cell.place for cell in found.tables[0].arms[0].cells.values()} == {0}
    assert "No significance test" in render(found, "md")


def test_tests_over_users_take_each_users_mean_over_seeds(seeds: Path):
    found = table(seeds).significance["ndcg"]
    labels = {0: "SIGMA r=0", 1: "SIGMA r=5", 2: "SIGMA r=2"}

    def gains(place: int) -> np.ndarray:
        rank = np.array([random_ranks(10 * place + seed, shift=4 * place) for seed in (1, 2, 3)])
        return np.where(rank <= 10, 1 / np.log2(rank + 1), 0)

    best = max(labels, key=lambda place: gains(place).mean())
    others = [place for place in labels if place != best]
    users = [ttest_rel(gains(best).mean(0), gains(each).mean(0), alternative="greater").pvalue for each in others]
    by_seed = [ttest_rel(gains(best).mean(1), gains(each).mean(1), alternative="greater").pvalue for each in others]
    assert found.best == labels[best]
    for tests, p, n in ((found.users, users, 60), (found.seeds, by_seed, 3)):
        assert [tests[labels[each]].p_holm for each in others] == pytest.approx(holm(p))
        assert {test.n for test in tests.values()} == {n}


def test_users_are_matched_by_id_whatever_their_order_in_the_files(tmp_path: Path):
    write_run(tmp_path / "a", "A", BEST, users=list("uvwxyz"), lengths=[9] * 6, result={})
    write_run(tmp_path / "a", "B", SECOND, users=list("uvwxyz"), lengths=[9] * 6)
    straight = table(tmp_path / "a").significance["mrr"].users["B"]
    for part in ("valid", "test"):
        (file,) = (tmp_path / "a").glob(f"B-*/ranks-{part}.npz")
        with np.load(file) as arrays:
            turned = {name: arrays[name][::-1] for name in arrays.files}
        np.savez_compressed(file, **turned)
    assert table(tmp_path / "a").significance["mrr"].users["B"].p == pytest.approx(straight.p)


def test_groups_hold_the_users_of_their_lengths(three: Path):
    groups = table(three, bounds=(5, 20)).groups
    assert [(group.title, group.count) for group in groups] == [("Short 0-5", 2), ("Medium 5-20", 2), ("Long 20+", 2)]
    for place, group in enumerate(groups):
        part = BEST[2 * place : 2 * place + 2]
        assert group.cells["SIGMA"]["mrr"].mean == pytest.approx(by_hand(part, "mrr"))


def test_a_group_without_users_has_no_numbers(three: Path):
    found = report(three, bounds=(1, 1000))
    assert [(group.count, bool(group.cells)) for group in found.tables[0].groups][-1] == (0, False)
    assert "| Long 1000+ | 0 | | — | — | — |" in render(found, "md")


# What does not belong together


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"name": "tiny_50%", "sha256": "cd" * 32}}, "belong in one table: checksum of the data is 'abab"),
        ({"protocol": {**PROTOCOL, "time_order": "recbole"}}, "time_order is 'exact' and 'recbole'"),
        ({"protocol": {}}, "split is 'leave-one-out.*' and not recorded"),
    ],
)  # fmt: skip
def test_other_data_or_protocols_are_refused(tmp_path: Path, change: dict, message: str):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "B", BEST, result=change)
    with pytest.raises(UserError, match=f"A-tiny.* and B-tiny.*{message}"):
        table(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": list("uvwxyz")}, "valid users differ: 6 only in the first, 6 only in the second"),
        ({"lengths": [1] * 6}, "valid history lengths of 6 users differ"),
    ],
)
def test_other_users_are_refused(tmp_path: Path, change: dict, message: str):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "B", BEST, **change)
    with pytest.raises(UserError, match=f"A-tiny.* and B-tiny.* do not belong in one table: {message}"):
        table(tmp_path)


def test_the_same_run_twice_is_refused(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "A", BEST)
    with pytest.raises(UserError, match="are both A with seed 2020; leave one out"):
        table(tmp_path)


def test_histories_of_other_lengths_stand_side_by_side_and_are_told(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "B", SECOND, result={"protocol": {**PROTOCOL, "max_item_list_length": 200}})
    assert "- max item list length: 50 (A); 200 (B)" in render(report(tmp_path), "md")


# Arms without results


def test_an_arm_without_a_result_is_shown_as_such(three: Path):
    found = report(three)
    texts = {form: render(found, form) for form in ("md", "html", "csv", "tex")}
    for text in (*texts.values(), summary(found)):
        assert "BERT4Rec" in text
        assert "not complete: 0 epochs" in text
    assert "| BERT4Rec | — | — | — | — | — | — | 0 |" in texts["md"]


def test_a_missing_seed_is_told_unless_it_was_run_again(seeds: Path):
    begin_run(seeds / "SIGMA-again", "SIGMA", seed=1, settings={"r": 2})
    begin_run(seeds / "SIGMA-new", "SIGMA", seed=4, settings={"r": 2})
    arm = next(arm for arm in table(seeds).arms if arm.label == "SIGMA r=2")
    assert len(arm.complete) == 3
    assert arm.problems == ["seed 4: not complete: 0 epochs"]


def test_a_trial_that_was_not_tested_has_its_validation_only(seeds: Path):
    write_run(seeds, "SASRec", random_ranks(99), seed=1, result={"test": None})
    for file in seeds.glob("SASRec-*/result.json"):
        file.write_text(file.read_text(encoding="utf-8").replace('"test": null, ', ""), encoding="utf-8")
    found = report(seeds, bounds=(5, 20))
    arm = next(arm for arm in found.tables[0].arms if arm.label == "SASRec")
    assert {part for part, _ in arm.cells} == {"valid"}
    assert arm.problems == ["seed 1: not tested"]
    assert set(found.tables[0].significance["mrr"].users) == {"SIGMA r=2", "SIGMA r=5"}
    for form in ("md", "html", "csv", "tex"):
        assert "seed 1: not tested" in render(found, form)


def test_a_report_of_nothing_but_failures_can_be_made(tmp_path: Path):
    found = report_of([RecordedRun("A", "SIGMA", "tiny", 1, problem="failed: no memory")], bounds=(5, 20))
    for form in ("md", "html", "csv", "tex"):
        assert "failed: no memory" in render(found, form)
    assert summary(found).splitlines()[-1] == "A, seed 1: failed: no memory"


# The formats


def test_markdown_has_the_numbers_of_the_ranks(three: Path):
    text = render(report(three, title="Of a_b", command="recbole-sigma report x"), "md")
    row = next(line for line in text.splitlines() if line.startswith("| SIGMA |"))
    values = [f"{by_hand(BEST, metric):.4f}" for _ in range(2) for metric in ("hit", "ndcg", "mrr")]
    assert re.findall(r"\d\.\d{4}", row) == values
    second = next(line for line in text.splitlines() if line.startswith("| Mamba4Rec |"))
    assert (row.count("**"), row.count("<u>")) == (12, 0)
    assert (second.count("**"), second.count("<u>")) == (4, 4)  # as good in HR
    assert f"<u>{by_hand(SECOND, 'mrr'):.4f}</u>" in text
    for needed in (
        "# Of a_b", "ab" * 32, "1,234 items", "time order: exact", "torch 2.13.0", "cpu (x86_64)", "seeds: 2020",
        "SIGMA-tiny_50%-20260101-000000-000000", "recbole-sigma train --model=SIGMA --seed=2020",
        "recbole-sigma report x",
    ):  # fmt: skip
        assert needed in text


def test_csv_has_full_precision_and_a_row_for_each_arm(three: Path):
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(render(report(three), "csv")))}
    assert set(rows) == {"SIGMA", "Mamba4Rec", "GRU4Rec", "BERT4Rec"}
    assert float(rows["SIGMA"]["test ndcg@10"]) == table(three).arms[-1].cells["test", "ndcg"].mean
    assert rows["SIGMA"]["test ndcg@10 deviation"] == ""
    assert float(rows["GRU4Rec"]["p mrr@10 users"]) == table(three).significance["mrr"].users["GRU4Rec"].p_holm


def test_latex_escapes_what_latex_would_take_for_its_own(three: Path):
    text = render(report(three), "tex")
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"tiny\_50\%" in "\n".join(lines)
    assert not [line for line in lines if re.search(r"(?<!\\)[_%#]", line)]
    assert "\\toprule" in lines and "\\bottomrule" in lines
    assert rf"\underline{{{by_hand(SECOND, 'mrr'):.4f}}}" in text
    widths = {line.count(" & ") + line.startswith("&") for line in lines if line.startswith(("SIGMA &", "GRU4Rec &"))}
    assert widths == {5, 7}  # of costs, of metrics
    assert "training: epochs 300." in text.replace(";", ".")


class _Page(HTMLParser):
    """Notes addresses, text, and tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_html_is_one_whole_file_without_links_to_elsewhere(seeds: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    write_report(report(seeds, bounds=(5, 20)), out, "html")
    page, text = _Page(), out.read_text(encoding="utf-8")
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "://" not in text and "url(" not in text and "@import" not in text
    mean = np.mean([by_hand(random_ranks(seed), "mrr") for seed in (1, 2, 3)])
    assert any(cell.startswith(f"{mean:.4f}") for cell in page.cells)


def test_html_and_markdown_show_text_as_text(tmp_path: Path):
    write_run(tmp_path, "A", BEST, settings={"name": "<b>|x|</b>"})
    write_run(tmp_path, "A", BEST, settings={"name": "y"})
    found = report(tmp_path, title="<script>")
    assert "<script>" not in render(found, "html") and "&lt;b&gt;|x|" in render(found, "html")
    assert r"A name=\<b\>\|x\|\</b\>" in render(found, "md")


def test_plots_of_markdown_stand_beside_it(three: Path, tmp_path: Path):
    write_report(report(three), tmp_path / "page.md", "md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    links = [name.replace("%25", "%") for name in re.findall(r"!\[.*\]\((.*)\)", text)]
    assert links == ["page-tiny_50%-curves.png", "page-tiny_50%-metrics.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in links)


def test_a_number_by_which_arms_differ_has_a_plot(seeds: Path, three: Path):
    assert varied_number(table(seeds)) == "r"
    assert [plot.name for plot in plots_of(report(seeds))] == [
        f"tiny_50%-{kind}" for kind in ("curves", "metrics", "setting")
    ]
    assert varied_number(table(three)) is None


def test_the_summary_fits_its_columns(tmp_path: Path):
    for seed in (1, 2):
        write_run(tmp_path, "A", BEST, seed=seed, settings={"a_setting_with_a_long_name": "x" * 200})
        write_run(tmp_path, "A", SECOND, seed=seed, settings={"a_setting_with_a_long_name": "y" * 200})
    lines = summary(report(tmp_path)).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert f"{by_hand(BEST, 'ndcg'):.4f}±0.0000" in "\n".join(lines)


# The command


def test_the_command_prints_the_summary_and_writes_the_file(three: Path, tmp_path: Path, capsys: Any):
    assert main(["report", str(three), f"--out={tmp_path / 'r.tex'}", "--groups", "--title=Mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "r.tex")
    assert "Medium 5-20" in (tmp_path / "r.tex").read_text(encoding="utf-8")
    assert main(["report", str(three), "--format=csv", "--k=5"]) == 0
    assert "test ndcg@5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=pdf"], "--format must be one of md, html, csv, tex, got 'pdf'"),
        (["--out=r.htm"], "--out: the ending must be one of md, html, csv, tex, got 'htm'; did you mean 'html'?"),
        (["--out=nowhere/r.md"], "--out: there is no folder 'nowhere'"),
        (["--k=0"], "--k must be at least 1"),
        (["--bounds=5,x"], "--bounds are whole numbers with commas"),
        (["--bounds=20,5"], "bounds of user groups must grow"),
        (["--seed=1"], "got '--seed=1'"),
    ],
)
def test_mistakes_in_the_command_are_told_in_one_line(three: Path, arguments: list[str], message: str, capsys: Any):
    assert main(["report", str(three), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
