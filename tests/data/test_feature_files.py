"""The .user and .item files: who reads them, what they leave out, and that a change of them is a change of the run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import cli, load_data_and_model, resume, run
from recbole_sigma.config.config import Config
from recbole_sigma.config.values import properties_path
from recbole_sigma.data import create_dataset
from recbole_sigma.data.atomic import AtomicFormat, read_atomic
from recbole_sigma.data.fields import feature_files
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.store import run_key
from recbole_sigma.report.render import report_of
from recbole_sigma.runs.reader import read_runs
from tests.helpers.runs import ON_CPU

USERS, ITEMS = 8, 7
FEATURES = {"selected_features": ["class"]}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`make(classes={item: class})` writes feat.inter (8 users, 7 items) and feat.item; returns settings of a run."""

    def write(classes: dict[str, str], name: str = "item_id") -> dict[str, Any]:
        folder = tmp_path / "data" / "feat"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"u{user}\ti{(user + k) % ITEMS}\t{k}" for user in range(USERS) for k in range(5)]
        (folder / "feat.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
        lines = [f"{item}\t{kind}" for item, kind in classes.items()]
        (folder / "feat.item").write_text("\n".join([f"{name}:token\tclass:token", *lines]) + "\n")
        sizes = {"hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 4, "epochs": 1, "state": "WARNING"}
        paths = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved")}
        return {**ON_CPU, **sizes, **paths}

    return write


ALL = {f"i{number}": f"c{number % 2}" for number in range(ITEMS)}
OTHER = dict.fromkeys(ALL, "c0")
WITHOUT_TWO = {item: kind for item, kind in ALL.items() if item not in ("i3", "i5")}


def test_a_file_that_a_model_does_not_read_plays_no_role(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    keys, sizes = set(), set()
    for classes in (ALL, OTHER, WITHOUT_TWO):
        config = Config("SASRec", "feat", settings=make(classes))
        keys.add(run_key(config))
        sizes.add(create_dataset(config).inter_num)
    assert len(keys) == 1 and sizes == {USERS * 5} and not caplog.records


@pytest.mark.parametrize(("source", "reads"), [("dataset.item_feat", 2), ("dataset.get_user_feature()", 2), ("", 0)])
def test_a_model_of_the_users_own_reads_the_files_if_its_source_does(
    source: str, reads: int, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{len(source)}"
    text = "from recbole.model.sequential_recommender import SASRec\nclass Own(SASRec):\n    ...\n"
    (tmp_path / f"{name}.py").write_text(f"{text}\ndef f(dataset): {source or 'dataset.item_features_of_mine'}\n")
    shutil.copy(properties_path() / "model" / "SASRec.yaml", tmp_path / "Own.yaml")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(feature_files(Config(f"{name}:Own", "feat", settings=make(ALL)))) == reads


def test_what_a_file_leaves_out_is_said_with_the_first_id(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    dataset = create_dataset(Config("SASRecF", "feat", settings=make(WITHOUT_TWO) | FEATURES))
    gone = 40 - dataset.inter_num
    text = f"{gone} of 40 interactions are left out: 2 items are not in feat.item (first: i3)"
    assert [record.getMessage() for record in caplog.records] == [text] and gone == 11


def test_ids_that_are_spelt_differently_are_shown_side_by_side(make: Any) -> None:
    settings = make({item.upper(): kind for item, kind in ALL.items()}) | FEATURES
    with pytest.raises(UserError, match=r"feat.item.*'i0' in the .inter file and 'I0'"):
        create_dataset(Config("SASRecF", "feat", settings=settings))


def test_a_run_that_reads_a_file_is_another_run_once_the_file_has_changed(make: Any, tmp_path: Path) -> None:
    settings = make(ALL) | FEATURES
    before = run_key(Config("SASRecF", "feat", settings=settings))
    first = run("SASRecF", "feat", config_dict=settings)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first.folder, unfinished)
    (unfinished / "result.json").unlink()
    make(OTHER)
    assert run_key(Config("SASRecF", "feat", settings=settings)) != before
    with pytest.raises(UserError, match=r"feat\.item"):
        resume(unfinished, {"epochs": 2})
    with pytest.raises(UserError, match=r"feat\.item"):
        load_data_and_model(first)
    run("SASRecF", "feat", config_dict=settings)
    with pytest.raises(UserError, match=r"feat\.item"):
        report_of(read_runs([tmp_path / "saved"]), "", "", 10, (), None)
    (tmp_path / "data" / "feat" / "feat.item").unlink()
    with pytest.raises(UserError, match=r"feat\.item|class"):
        resume(unfinished, {"epochs": 2})


def test_runs_with_another_number_of_candidates_are_not_put_into_one_table(make: Any, tmp_path: Path) -> None:
    settings = make({**ALL, "i98": "c1", "i99": "c1"})
    for name, more in {"SASRec": {}, "SASRecF": FEATURES}.items():
        run(name, "feat", config_dict=settings | more)
    with pytest.raises(UserError, match="number of candidates is 7 and 9"):
        report_of(read_runs([tmp_path / "saved"]), "", "", 10, (), None)


@pytest.mark.parametrize("setting", ["load_col", "unload_col"])
@pytest.mark.parametrize("file", ["inter", "item"])
def test_a_column_that_does_not_exist_is_named(setting: str, file: str, make: Any) -> None:
    with pytest.raises(UserError, match=rf"{setting}.*\.{file} file.*'nope'"):
        create_dataset(Config("SASRec", "feat", settings={**make(ALL), setting: {file: ["nope"]}}))


def test_seq_len_names_a_column_of_lists(make: Any) -> None:
    for name, words in (("clas", "'class'"), ("class", "token_seq")):
        with pytest.raises(UserError, match=f"seq_len.*{words}"):
            create_dataset(Config("SASRec", "feat", settings={**make(ALL), "seq_len": {name: 2}}))


# --- all digits of a time count


@pytest.mark.parametrize(
    "times",
    [
        ["1600000000000000002", "1600000000000000001", "1600000000000000003", "1600000001000000000.0"],
        ["1.600000000000000002e18", "1600000000000000001", "1600000000000000003", "1600000000000000004"],
        ["2.5", "1", "3e0", "1e1"],
        ["-1", "-1.5", "0", "00.5"],
    ],
)
def test_times_of_any_mixture_of_forms_are_in_their_order(times: list[str], write_inter: Any) -> None:
    path = write_inter([["u", item, time] for item, time in zip("abcd", times, strict=True)])
    form = AtomicFormat({"user_id": "", "item_id": ""}, {"timestamp": ""})
    frame = read_atomic(path, form).frame
    assert frame.sort_values("timestamp", kind="stable")["item_id"].tolist() == [*"bacd"]


@pytest.mark.parametrize(
    "times",
    [["16000000000000000000002", "16000000000000000000001"], ["1600000000.00000001", "1600000000.00000002"]],
)
def test_times_that_a_number_cannot_tell_apart_are_refused_with_both_lines(times: list[str], write_inter: Any) -> None:
    path = write_inter([["u", item, time] for item, time in zip("ab", times, strict=True)])
    with pytest.raises(UserError, match=f"tiny.inter:3: timestamp {times[1]}.*{times[0]} in line 2"):
        read_atomic(path, AtomicFormat({"user_id": "", "item_id": ""}, {"timestamp": ""}))


def test_the_command_line_trains_again_after_a_change(make: Any, tmp_path: Path, capsys: Any) -> None:
    for classes in (ALL, OTHER):
        settings = make(classes) | FEATURES | {"state": "ERROR"}
        options = [f"--{name}={value}".replace("'", "") for name, value in settings.items()]
        assert cli.main(["compare", "--model=SASRecF", "--dataset=feat", *options]) == 0
    assert len([*(tmp_path / "saved").glob("*/SASRecF-*/result.json")]) == 2
    assert "SASRecF" in capsys.readouterr().out
