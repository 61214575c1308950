"""A case study shows the lists of the runs' models, loaded from their directories, on the data they were trained on."""

from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import run
from recbole_sigma.cli import main
from recbole_sigma.errors import UserError
from recbole_sigma.report.case_study import CaseStudy, case_study
from recbole_sigma.report.render import WIDTH, render, report_of, summary
from recbole_sigma.runs.reader import RecordedRun, load_run, read_runs

SMALL = {"epochs": 1, "hidden_size": 8, "MAX_ITEM_LIST_LENGTH": 6, "use_gpu": False, "show_progress": False}
MODELS = {"SIGMA": {"r": 2, "d_state": 2}, "GRU4Rec": {"embedding_size": 8}, "BERT4Rec": {"n_layers": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RecordedRun]:
    """A run of each of MODELS on 8 users of 5 to 12 items among 20; items have titles."""
    folder = tmp_path_factory.mktemp("case")
    data = folder / "data" / "tiny"
    data.mkdir(parents=True)
    rows = [f"u{user}\t{item}\t{step}" for user in range(8) for step, item in enumerate(items_of(user))]
    (data / "tiny.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, ""]))
    titles = [f"i{item}\tred\t{f'The <{item}>' if item < 19 else ''}" for item in range(20)]
    (data / "tiny.item").write_text("\n".join(["item_id:token\tcolour:token\tmovie_title:token_seq", *titles, ""]))
    for model, own in MODELS.items():
        settings = {**SMALL, **own, "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
        run(model, "tiny", settings=settings)
    return read_runs([folder / "saved"])


@pytest.fixture(scope="module")
def case(runs: list[RecordedRun]) -> CaseStudy:
    """Of the longest history, 11 items before the target."""
    return case_study(runs, "u7", k=5)


def items_of(user: int) -> list[str]:
    return [f"i{(3 * user + 7 * step + step * step) % 20}" for step in range(5 + user)]


def test_loaded_models_rank_the_target_as_in_their_runs(runs: list[RecordedRun], case: CaseStudy):
    assert {each.label for each in case.lists} == set(MODELS)
    for each in case.lists:
        ranks = next(run for run in runs if run.label == each.label).ranks("test")
        assert each.target_rank == ranks.rank[ranks.user == "u7"].item()
        assert case.target == ranks.target[ranks.user == "u7"].item()
        assert len(each.items) == len(set(each.items)) == 5
        assert (case.target in each.items) == (each.target_rank <= 5)
        assert case.target not in each.items or each.items.index(case.target) + 1 == each.target_rank


def test_seen_items_are_left_out_where_the_protocol_leaves_them_out(runs: list[RecordedRun], tmp_path: Path):
    settings = {**SMALL, "data_path": runs[0].settings["data_path"], "checkpoint_dir": str(tmp_path), "mask_seen": True}
    run("GRU4Rec", "tiny", settings={**settings, "embedding_size": 8})
    (masked,) = read_runs([tmp_path])
    (shown,) = case_study([masked], "u7", k=20).lists
    assert shown.target_rank == masked.ranks("test").rank[masked.ranks("test").user == "u7"].item()
    assert {*shown.items[: -len({*items_of(7)[:-1]})]}.isdisjoint(items_of(7)[:-1])


def test_histories_are_what_the_models_see_of_them(case: CaseStudy):
    assert case.history == items_of(7)[-7:-1]
    assert (case.history_length, case.target) == (11, items_of(7)[-1])
    a, b, c, d, e, f = case.history
    flipped = {each.label: each.flipped for each in case.lists}
    assert flipped == {"SIGMA": [d, c, b, a, e, f], "GRU4Rec": [], "BERT4Rec": []}  # r = 2


def test_items_are_shown_by_their_titles(runs: list[RecordedRun], case: CaseStudy):
    assert case.title("i3") == "The <3>"
    assert case.title("i19") == "i19"  # has none
    report = report_of(runs, user="u7", k=5)
    assert "The &lt;5&gt;" in render(report, "html") and r"The \<5\>" in render(report, "md")
    lines = summary(report).splitlines()
    assert "user u7 of tiny" in lines and any("The <5>" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_the_command_shows_the_case(runs: list[RecordedRun], capsys: Any, refused: Any):
    folder = runs[0].folder
    assert folder
    assert main(["report", str(folder.parent), "--case-study=u7"]) == 0
    assert "user u7 of tiny" in capsys.readouterr().out
    refused("report", str(folder.parent), "--case-study=u77", names=["tiny has no user 'u77'", "did you mean 'u7'?"])


def test_a_user_without_a_finished_run_is_refused():
    with pytest.raises(UserError, match=r"u7.* no finished run"):
        case_study([RecordedRun("A", "SIGMA", "tiny", 1, problem="failed")], "u7")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny.inter", ("u0\t", "u9\t"), r"tiny\.inter is not the file"),
        ("items.json", ("i1", "j1"), r"items\.json"),
        ("config.yaml", ("embedding_size: 8", "embedding_size: 4"), "not the weights of GRU4Rec"),
        ("config.yaml", ("model: GRU4Rec", "model: some.module:Model"), "model=some.module:Model"),
    ],
)
def test_other_data_items_weights_and_unconfirmed_models_are_refused(
    runs: list[RecordedRun], name: str, change: tuple[str, str], message: str
):
    run = next(run for run in runs if run.model == "GRU4Rec")
    file = Path(run.settings["data_path"], "tiny", name) if name == "tiny.inter" else Path(run.folder or "", name)
    before = file.read_text(encoding="utf-8")
    assert change[0] in before
    try:
        file.write_text(before.replace(*change), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_run(run.folder, use_gpu=False)
    finally:
        file.write_text(before, encoding="utf-8")
