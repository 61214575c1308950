"""Reports show what follows from the runs' ranks, in each format, and no more than that."""

import csv
import io
import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from recbole_sigma.cli import main
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.significance import holm
from recbole_sigma.report.plots import _curves, plots_of, varied_number
from recbole_sigma.report.render import WIDTH, render, report_of, summary, write_report
from recbole_sigma.report.table import COLUMNS, Report, Table, table_of
from recbole_sigma.runs.reader import RecordedRun, read_runs
from tests.helpers.recorded_runs import DATA, PROTOCOL, begin_run, write_run

FORMATS = ("md", "html", "csv", "tex")
BEST = [1.0, 2.0, 11.0, 4.0, 1.0, 50.0]
SECOND = [2.0, 2.0, 12.0, 9.0, 3.0, 60.0]
WORST = [30.0, 9.0, 40.0, 10.0, 11.0, 70.0]
THREE = {"SIGMA": BEST, "Mamba4Rec": SECOND, "GRU4Rec": WORST}


def by_hand(ranks: list[float], metric: str, k: int = 10) -> float:
    gain = {"hit": lambda _: 1.0, "ndcg": lambda rank: 1 / np.log2(rank + 1), "mrr": lambda rank: 1 / rank}[metric]
    return sum(gain(rank) for rank in ranks if rank <= k) / len(ranks)


def random_ranks(seed: int, shift: float = 0, n: int = 60) -> list[float]:
    return (np.maximum(np.random.default_rng(seed).integers(1, 30, n) + shift, 1)).astype(float).tolist()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """SIGMA before Mamba4Rec before GRU4Rec, one seed; BERT4Rec without a result."""
    folder = tmp_path / "three"
    for model, ranks in THREE.items():
        write_run(folder, model, ranks, lengths=[1, 4, 5, 19, 20, 90])
    begin_run(folder / "BERT4Rec-1", "BERT4Rec")
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """SIGMA with r 0, 2 and 5, three seeds each."""
    folder = tmp_path / "seeds"
    for (number, r), seed in itertools.product(enumerate((0, 5, 2)), (1, 2, 3)):
        write_run(folder, "SIGMA", random_ranks(10 * number + seed, 4 * number), seed=seed, settings={"r": r})
    return folder


def table(folder: Path, **options: Any) -> Table:
    return table_of(read_runs([folder]), **options)


def report(folder: Path, **options: Any) -> Report:
    return report_of(read_runs([folder]), **options)


def test_ranks_without_seen_items_are_a_table_of_their_own(tmp_path: Path):
    for model, rank in (("SIGMA", SECOND), ("SASRec", BEST)):
        masked = [max(each - 1, 1.0) for each in rank]
        write_run(tmp_path, model, rank, masked=masked)
    shown = report(tmp_path, masked=True)
    for label, rank in (("SIGMA", SECOND), ("SASRec", BEST)):
        cell = shown.tables[0].cell(label, "test, seen masked", "ndcg")
        assert cell is not None and cell.mean == pytest.approx(by_hand([max(each - 1, 1.0) for each in rank], "ndcg"))
    for form in ("md", "html"):
        text = render(shown, form)
        assert text.index("All items, seen items not masked") < text.index("The same scores, seen items masked")
        assert "NDCG@10, seen masked" in text, "its tests of significance"
    assert "The same scores, seen items masked" in summary(shown)
    assert "masked" not in summary(report(tmp_path)).replace("not masked", "")
    (folder,) = tmp_path.glob("SIGMA*")
    result = (folder / "result.json").read_text()
    wrong = result.replace('"seen_masked": {"valid": {"hit@10": 0', '"seen_masked": {"valid": {"hit@10": 7')
    (folder / "result.json").write_text(wrong)
    with pytest.raises(UserError, match=r"seen_masked valid hit@10 is 7"):
        report(tmp_path)


def test_the_axis_of_a_run_with_one_epoch_counts_whole_epochs(tmp_path: Path):
    folder = write_run(tmp_path, "SIGMA", BEST)
    rows = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(rows[:2]) + "\n")
    figure = _curves(table(tmp_path))
    assert figure is not None
    low, high = figure.axes[0].get_xlim()
    shown = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
    assert 0 in shown and all(tick == int(tick) for tick in shown)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_means_are_those_computed_by_hand_from_ranks(three: Path, k: int):
    means = table(three, k=k)
    for label, metric in itertools.product(THREE, ("hit", "ndcg", "mrr")):
        mean = means.cell(label, "test", metric).mean
        assert mean == pytest.approx(by_hand(THREE[label], metric, k), abs=1e-15)


def test_deviations_are_over_seeds_and_none_is_claimed_for_one_seed(seeds: Path, three: Path):
    each = [by_hand(random_ranks(seed), "ndcg") for seed in (1, 2, 3)]
    cell = table(seeds).cell("SIGMA r=0", "test", "ndcg")
    assert (cell.mean, cell.deviation) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert f"{np.mean(each):.4f} ± {np.std(each, ddof=1):.4f}" in render(report(seeds), "md").replace("*", "")
    assert table(three).means["deviation"].isna().all()
    for text in (summary(report(three)), *(render(report(three), form) for form in ("md", "tex", "html"))):
        assert "±" not in text and r"\pm" not in text


def test_best_and_second_are_marked_and_improvement_is_of_their_means(three: Path):
    marked = table(three)
    assert [marked.cell(label, "test", "ndcg").rank for label in THREE] == [1, 2, 0]
    expected = by_hand(BEST, "ndcg") / by_hand(SECOND, "ndcg") - 1
    assert marked.improvement["test", "ndcg"] == pytest.approx(expected)


def test_equal_bests_share_their_rank_and_none_is_second(tmp_path: Path):
    for model, ranks in (("A", BEST), ("B", BEST), ("C", WORST)):
        write_run(tmp_path, model, ranks)
    tied = table(tmp_path)
    assert [tied.cell(label, "test", "mrr").rank for label in "ABC"] == [1, 1, 0]
    assert tied.improvement["test", "mrr"] == 0.0
    assert tied.significance["mrr"].users["B"].p_holm == 1.0
    assert tied.cell("A", "test", "mrr").mark == ""


def test_marks_are_on_the_best_cells_of_test_only(tmp_path: Path):
    for seed, (model, shift) in itertools.product(range(5), (("A", 0), ("B", 8), ("C", 12))):
        write_run(tmp_path, model, random_ranks(seed, shift, n=200), seed=seed)
    marks = table(tmp_path, bounds=(5, 20)).means["mark"]
    assert marks[marks != ""].to_dict() == {("A", "", "test", metric): "*†" for metric in ("hit", "ndcg", "mrr")}


def test_nothing_is_best_in_a_single_row_and_nothing_is_an_improvement_over_zero(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    alone = report(tmp_path)
    assert set(alone.tables[0].means["rank"]) == {0}
    assert "No significance test" in render(alone, "md")
    write_run(tmp_path, "B", [100.0] * 6)
    assert table(tmp_path).improvement["test", "hit"] is None


def test_tests_over_users_take_each_users_mean_over_seeds(seeds: Path):
    tests = table(seeds).significance["ndcg"]
    labels = {0: "SIGMA r=0", 1: "SIGMA r=5", 2: "SIGMA r=2"}

    def gains(number: int) -> np.ndarray:
        rank = np.array([random_ranks(10 * number + seed, shift=4 * number) for seed in (1, 2, 3)])
        return np.where(rank <= 10, 1 / np.log2(rank + 1), 0)

    best = max(labels, key=lambda number: gains(number).mean())
    others = [number for number in labels if number != best]
    users = [ttest_rel(gains(best).mean(0), gains(each).mean(0), alternative="greater").pvalue for each in others]
    by_seed = [ttest_rel(gains(best).mean(1), gains(each).mean(1), alternative="greater").pvalue for each in others]
    assert tests.best == labels[best]
    for by_label, p, n in ((tests.users, users, 60), (tests.seeds, by_seed, 3)):
        assert [by_label[labels[each]].p_holm for each in others] == pytest.approx(holm(p))
        assert {test.n for test in by_label.values()} == {n}


def test_users_are_matched_by_id_whatever_their_order_in_the_files(three: Path):
    before = table(three).significance["mrr"].users["GRU4Rec"].p
    for file in three.glob("GRU4Rec-*/ranks-*.npz"):
        with np.load(file) as arrays:
            turned = {name: arrays[name][::-1] for name in arrays.files}
        np.savez_compressed(file, **turned)
    assert table(three).significance["mrr"].users["GRU4Rec"].p == pytest.approx(before)


def test_groups_hold_the_users_of_their_lengths(three: Path):
    grouped = table(three, bounds=(5, 20))
    titles = [(group.title, group.count) for group in grouped.groups]
    assert titles == [("Short 0-5", 2), ("Medium 5-20", 2), ("Long 20+", 2)]
    for number, (title, _) in enumerate(titles):
        mean = by_hand(BEST[2 * number : 2 * number + 2], "mrr")
        assert grouped.cell("SIGMA", "test", "mrr", title).mean == pytest.approx(mean)
    assert "| Long 1000+ | 0 | SIGMA | — | — | — |" in render(report(three, bounds=(1, 1000)), "md")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"result": {"dataset": {**DATA, "name": "tiny_50%", "sha256": "cd"}}}, "data is 'abab.* and 'cd'"),
        ({"result": {"protocol": {**PROTOCOL, "time_order": "recbole"}}}, "time_order is 'exact' and 'recbole'"),
        ({"result": {"protocol": {}}}, "ranking is 'all items.*' and 'not recorded'"),
        ({"users": list("uvwxyz")}, "'user'.*ranks-valid.npz"),
        ({"lengths": [1] * 6}, "'history_length'.*ranks-valid.npz"),
    ],
)
@pytest.mark.parametrize("model", ["A", "B"])
def test_other_data_protocols_or_users_are_refused(tmp_path: Path, change: dict, message: str, model: str):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, model, BEST, **({"seed": 1} if "result" not in change else {}), **change)
    with pytest.raises(UserError, match=f"A-tiny.* and {model}-tiny.*{message}"):
        table(tmp_path)


def test_the_newest_of_repeated_runs_counts_and_the_others_are_named(tmp_path: Path):
    for stamp, ranks in (("20260103-000000", BEST), ("20260101-000000", WORST), ("20260102-000000", SECOND)):
        write_run(tmp_path, "A", ranks, stamp=stamp)
    begin_run(tmp_path / "A-tiny-20260104-000000-000000", "A")
    repeated = report(tmp_path)
    assert repeated.tables[0].cell("A", "test", "mrr").mean == pytest.approx(by_hand(BEST, "mrr"))
    (problem,) = repeated.tables[0].problems
    names = sorted(path.name for path in tmp_path.glob("A-tiny_50*"))
    assert problem.startswith(f"A, seed 2020: was repeated; {names[2]}") and problem.endswith(", ".join(names[:2]))
    for text in (summary(repeated).replace("\n", " "), render(repeated, "md"), render(repeated, "csv")):
        assert names[0] in text and names[1] in text


def test_of_runs_with_one_stamp_the_last_written_counts_and_a_tested_one_before_a_trial(tmp_path: Path):
    old, new = write_run(tmp_path, "A", WORST), write_run(tmp_path, "A", BEST)
    os.utime(old / "result.json", (1, 1))
    assert table(tmp_path).rows[0].complete[0].name == new.name
    os.utime(new / "result.json", (0, 0))
    assert table(tmp_path).rows[0].complete[0].name == old.name
    trial = write_run(tmp_path, "A", SECOND, result={"test": None, "trial": True}, stamp="20270101-000000")
    assert table(tmp_path).rows[0].complete[0].name == old.name and trial.name in table(tmp_path).problems[0]


def test_runs_of_one_label_that_differ_are_refused(tmp_path: Path):
    for digest in ("0" * 16, "1" * 16):
        write_run(tmp_path, "A", BEST, settings={"member_settings": [{"model": "B", "digest": digest}]})
    with pytest.raises(UserError, match=r"A-tiny.* and A-tiny.* seed 2020"):
        table(tmp_path)


def test_the_patience_of_what_is_not_trained_epoch_by_epoch_does_not_matter(tmp_path: Path):
    other = {**PROTOCOL, "selection": "validation NDCG@10, patience 20"}
    write_run(tmp_path, "A", BEST, result={"samples_per_second": 99.5})
    write_run(tmp_path, "Pop", SECOND, result={"samples_per_second": 0.0, "protocol": other})
    assert [row.label for row in table(tmp_path).rows] == ["A", "Pop"]


def test_histories_of_other_lengths_are_comparable_and_noted(tmp_path: Path):
    write_run(tmp_path, "A", BEST)
    write_run(tmp_path, "B", SECOND, result={"protocol": {**PROTOCOL, "max_item_list_length": 200}})
    assert "- max item list length: 50 (A); 200 (B)" in render(report(tmp_path), "md")


def test_seconds_and_memory_of_two_devices_have_no_mean(tmp_path: Path):
    for seed, device in enumerate(("cpu (x86_64)", "NVIDIA H100")):
        write_run(tmp_path, "A", BEST, seed=seed, result={"device": device, "epochs": 3 + seed})
        write_run(tmp_path, "B", BEST, seed=seed)
    assert table(tmp_path).rows[0].costs == {"n_parameters": 892163, "epochs": 3.5}
    assert "| B | 892,163 | 3 | 29.6 | 4.8 | 812 |" in render(report(tmp_path), "md")


def test_unfinished_runs_are_reported_unless_they_were_run_again(three: Path):
    begin_run(three / "SIGMA-again", "SIGMA")
    begin_run(three / "SIGMA-new", "SIGMA", seed=4)
    problem = "not finished: 0 epochs"
    assert table(three).problems == [f"BERT4Rec, seed 2020: {problem}", f"SIGMA, seed 4: {problem}"]
    texts = {form: render(report(three), form) for form in FORMATS}
    for text in (*texts.values(), summary(report(three))):
        assert "BERT4Rec" in text and problem in text
    assert "| BERT4Rec | 0 | — | — | — | — | — | — |" in texts["md"]


def test_a_trial_that_was_not_tested_has_its_validation_only(seeds: Path):
    write_run(seeds, "SASRec", random_ranks(99), seed=1, result={"test": None, "trial": True})
    trial = report(seeds, bounds=(5, 20))
    assert {split for _, split, _ in trial.tables[0].means.loc["SASRec"].index} == {"valid"}
    assert trial.tables[0].problems == ["SASRec, seed 1: not tested"]
    assert set(trial.tables[0].significance["mrr"].users) == {"SIGMA r=2", "SIGMA r=5"}
    assert all("seed 1: not tested" in render(trial, form) for form in FORMATS)


def test_a_report_of_nothing_but_failures_can_be_made():
    failed = report_of([RecordedRun("A", "SIGMA", "tiny", 1, problem="failed: no memory")], bounds=(5, 20))
    assert all("failed: no memory" in render(failed, form) for form in FORMATS)
    assert summary(failed).splitlines()[-1] == "A, seed 1: failed: no memory"


def test_markdown_has_the_numbers_of_the_ranks(three: Path):
    text = render(report(three, title="Of a_b", command="recbole-sigma report x"), "md")
    row = next(line for line in text.splitlines() if line.startswith("| SIGMA |"))
    values = [f"{by_hand(BEST, metric):.4f}" for _ in range(2) for metric in ("hit", "ndcg", "mrr")]
    assert re.findall(r"\d\.\d{4}", row) == values
    second = next(line for line in text.splitlines() if line.startswith("| Mamba4Rec |"))
    assert (row.count("**"), row.count("<u>")) == (12, 0)
    assert (second.count("**"), second.count("<u>")) == (4, 4)  # as good in HR
    assert f"<u>{by_hand(SECOND, 'mrr'):.4f}</u>" in text
    needed = ("# Of a_b", "ab" * 32, "1,234 items", "time order: exact", "torch 2.13.0", "cpu (x86_64)", "seeds: 2020")
    needed += ("SIGMA-tiny_50%-20260101-000000-000000", "recbole-sigma train --model=SIGMA --seed=2020")
    assert all(each in text for each in (*needed, "recbole-sigma report x"))


def test_csv_has_full_precision_and_a_line_per_row(three: Path):
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(render(report(three), "csv")))}
    assert set(rows) == {"SIGMA", "Mamba4Rec", "GRU4Rec", "BERT4Rec"}
    assert float(rows["SIGMA"]["test ndcg@10"]) == table(three).cell("SIGMA", "test", "ndcg").mean
    assert rows["SIGMA"]["test ndcg@10 deviation"] == ""
    assert float(rows["GRU4Rec"]["p mrr@10 users"]) == table(three).significance["mrr"].users["GRU4Rec"].p_holm


def test_latex_escapes_what_latex_would_take_for_its_own(three: Path):
    text = render(report(three), "tex")
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"tiny\_50\%" in "\n".join(lines)
    assert not [line for line in lines if re.search(r"(?<!\\)[_%#]", line)]
    assert "\\toprule" in lines and "\\bottomrule" in lines
    assert rf"\underline{{{by_hand(SECOND, 'mrr'):.4f}}}" in text
    widths = {line.count(" & ") for line in lines if line.startswith(("SIGMA &", "GRU4Rec &"))}
    assert widths == {5, 1 + len(COLUMNS)}  # of costs, of metrics
    assert "training: epochs 300." in text.replace(";", ".")


def test_html_is_one_file_without_links_to_elsewhere(seeds: Path, tmp_path: Path):
    write_report(report(seeds, bounds=(5, 20)), tmp_path / "page.html", "html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for tag in ("html", "body", "table", "tr", "td", "th", "b", "u", "small", "dl", "dt", "dd", "figure", "p"):
        assert len(re.findall(rf"<{tag}\b", text)) == text.count(f"</{tag}>")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) == 4 and all(each.startswith("data:image/png;base64,") for each in addresses)
    assert "://" not in text and "url(" not in text and "@import" not in text
    mean = np.mean([by_hand(random_ranks(seed), "mrr") for seed in (1, 2, 3)])
    assert f'<td class="r"><b>{mean:.4f}</b> <small>' in text


def test_html_and_markdown_show_text_as_text(tmp_path: Path):
    write_run(tmp_path, "A", BEST, settings={"name": "<b>|x|</b>"})
    write_run(tmp_path, "A", BEST, settings={"name": "y"})
    escaped = report(tmp_path, title="<script>")
    assert "<script>" not in render(escaped, "html") and "&lt;b&gt;|x|" in render(escaped, "html")
    assert r"A name=\<b\>\|x\|\</b\>" in render(escaped, "md")


def test_plots_of_markdown_are_files_beside_it(three: Path, tmp_path: Path):
    write_report(report(three), tmp_path / "page.md", "md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    links = [name.replace("%25", "%") for name in re.findall(r"!\[.*\]\((.*)\)", text)]
    assert links == ["page-tiny_50%-curves.png", "page-tiny_50%-metrics.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in links)


def test_a_number_by_which_rows_differ_has_a_plot(seeds: Path, three: Path):
    assert (varied_number(table(seeds)), varied_number(table(three))) == ("r", None)
    names = [plot.name for plot in plots_of(report(seeds))]
    assert names == ["tiny_50%-curves", "tiny_50%-metrics", "tiny_50%-setting"]


def test_the_summary_fits_its_columns_and_is_plain_text(tmp_path: Path):
    for seed, (letter, ranks) in itertools.product((1, 2), (("x", BEST), ("y", SECOND))):
        write_run(tmp_path, "A", ranks, seed=seed, settings={"a_setting_with_a_long_name": letter * 200})
    text = summary(report(tmp_path))
    assert max(map(len, text.splitlines())) <= WIDTH and "\x1b" not in text
    assert f"•{by_hand(BEST, 'ndcg'):.4f}±0.0000" in text


def test_the_command_prints_the_summary_and_writes_the_file(three: Path, tmp_path: Path, capsys: Any):
    assert main(["report", str(three), f"--out={tmp_path / 'r.tex'}", "--groups", "--title=Mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "r.tex")
    assert "Medium 5-20" in (tmp_path / "r.tex").read_text(encoding="utf-8")
    assert main(["report", str(three), "--format=csv", "--k=5"]) == 0
    assert "test ndcg@5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--format=pdf"], ["--format", "md, html, csv, tex", "'pdf'"]),
        (["--out=r.htm"], ["--out", "md, html, csv, tex", "'htm'", "did you mean 'html'?"]),
        (["--out=/dev/null/r.md"], ["--out", "/dev/null"]),
        (["--k=0"], ["--k", "at least 1", "0"]),
        (["--k=x"], ["--k", "'x'"]),
        (["--bounds=5,x"], ["--bounds", "5,20", "'5,x'"]),
        (["--bounds=20,5"], ["bounds", "grow", "5,20"]),
        (["--seed=1"], ["--seed"]),
        (["--case-study=u1", "--model=no.such.module:Class"], ["no.such.module:Class"]),
    ],
)
def test_mistakes_in_the_command_are_reported_in_one_line(three: Path, arguments: list, named: list, refused: Any):
    refused("report", str(three), *arguments, names=named)
