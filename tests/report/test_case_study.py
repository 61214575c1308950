"""A case study shows what the runs' models show: made again from their folders, on the data they were trained on."""

from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import run
from recbole_sigma.cli import main
from recbole_sigma.errors import UserError
from recbole_sigma.report.case_study import CaseStudy, case_study
from recbole_sigma.report.render import render, report_of
from recbole_sigma.runs.reader import RecordedRun, read_runs

SMALL = {
    "epochs": 1,
    "hidden_size": 8,
    "d_state": 2,
    "MAX_ITEM_LIST_LENGTH": 6,
    "use_gpu": False,
    "show_progress": False,
}
MODELS = {
    "SIGMA": {"r": 2},
    "GRU4Rec": {"d_state": None, "embedding_size": 8},
    "BERT4Rec": {"d_state": None, "n_layers": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RecordedRun]:
    """A run of each of MODELS on 8 users of 5 to 12 items among 20; items have titles."""
    folder = tmp_path_factory.mktemp("case")
    rows = [
        f"u{user}\ti{(3 * user + 7 * place + place * place) % 20}\t{100 + place}"
        for user in range(8)
        for place in range(5 + user)
    ]
    data = folder / "data" / "tiny"
    data.mkdir(parents=True)
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (data / "tiny.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    titles = [f"i{item}\tred\t{f'The <{item}>' if item < 19 else ''}" for item in range(20)]
    (data / "tiny.item").write_text("\n".join(["item_id:token\tcolour:token\tmovie_title:token_seq", *titles]) + "\n")
    for model, own in MODELS.items():
        settings = {**SMALL, **own, "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
        run(model, "tiny", settings={key: value for key, value in settings.items() if value is not None})
    return read_runs([folder / "saved"])


@pytest.fixture(scope="module")
def case(runs: list[RecordedRun]) -> CaseStudy:
    """Of the longest history, 11 items before the target."""
    return case_study(runs, "u7", k=5)


def items_of(user: int) -> list[str]:
    return [f"i{(3 * user + 7 * place + place * place) % 20}" for place in range(5 + user)]


def test_the_models_made_again_rank_the_target_as_the_runs_did(runs: list[RecordedRun], case: CaseStudy):
    assert {each.label for each in case.lists} == set(MODELS)
    for each in case.lists:
        ranks = next(run for run in runs if run.label == each.label).ranks("test")
        assert each.target_rank == ranks.rank[ranks.user == "u7"].item()
        assert case.target == ranks.target[ranks.user == "u7"].item()


def test_lists_hold_k_items_and_the_target_where_its_rank_says(case: CaseStudy):
    for each in case.lists:
        assert len(each.items) == len(set(each.items)) == 5
        assert (case.target in each.items) == (each.target_rank <= 5)
        assert case.target not in each.items or each.items.index(case.target) + 1 == each.target_rank


def test_the_history_is_what_the_models_see_of_it(case: CaseStudy):
    assert list(case.history) == items_of(7)[-7:-1]
    assert (case.history_length, case.target) == (11, items_of(7)[-1])


def test_the_flipped_history_keeps_the_last_r_items(case: CaseStudy):
    a, b, c, d, e, f = case.history
    assert case.flipped == {(d, c, b, a, e, f): ["SIGMA"]}


def test_items_are_shown_by_their_titles(runs: list[RecordedRun], case: CaseStudy):
    assert case.title("i3") == "The <3>"
    assert case.title("i19") == "i19"  # has none
    report = report_of(runs, user="u7", k=5)
    assert "The &lt;5&gt;" in render(report, "html") and r"The \<5\>" in render(report, "md")
    assert "The <5>" in case.text(100)


@pytest.mark.parametrize("columns", [60, 100])
def test_a_case_fits_the_terminal(case: CaseStudy, columns: int):
    assert max(map(len, case.text(columns).splitlines())) <= columns


def test_the_command_shows_the_case(runs: list[RecordedRun], capsys: Any):
    folder = runs[0].folder
    assert folder
    assert main(["report", str(folder.parent), "--case-study=u7"]) == 0
    assert "user u7 of tiny" in capsys.readouterr().out
    assert main(["report", str(folder.parent), "--case-study=u77"]) == 2
    assert "tiny has no user 'u77' on test; did you mean 'u7'?" in capsys.readouterr().err


def test_without_a_complete_run_there_is_no_case():
    with pytest.raises(UserError, match="there is no complete run"):
        case_study([RecordedRun("A", "SIGMA", "tiny", 1, problem="failed")], "u7")


def test_other_data_than_the_runs_is_refused(runs: list[RecordedRun]):
    data = Path(runs[0].settings["data_path"], "tiny", "tiny.inter")
    before = data.read_bytes()
    try:
        data.write_bytes(before + b"u0\ti1\t999\n")
        with pytest.raises(UserError, match=r"tiny\.inter is not the file that the run was trained on"):
            case_study(runs, "u7")
    finally:
        data.write_bytes(before)
