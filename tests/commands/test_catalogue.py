"""`recbole-sigma models`."""

import re

import pytest
import yaml

from recbole_sigma import cli
from recbole_sigma.commands.models import catalogue, model_page, models_table, n_parameters, paper, settings
from recbole_sigma.config.config import Config, properties_path

NINE = {"SIGMA", "Mamba4Rec", "ECHO", "RecMamba", "LinRec", "GRU4Rec", "BERT4Rec", "SASRec", "FEARec"}
ARXIV = {
    "SIGMA": "2408.11451",
    "Mamba4Rec": "2403.03900",
    "ECHO": "2406.02638",
    "RecMamba": "2403.16371",
    "LinRec": "2411.01537",
    "GRU4Rec": "1606.08117",
    "BERT4Rec": "1904.06690",
    "SASRec": "1808.09781",
    "FEARec": "2304.09184",
}


def test_the_list_has_every_model_its_paper_and_parameters_in_100_columns(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(NINE)]}
    assert set(rows) == set(catalogue()) >= NINE
    for name, number in ARXIV.items():
        assert f"arXiv {number}" in rows[name] and paper(name).endswith(number)
        assert f" {n_parameters(name, 12_101):,} " in rows[name]
        assert re.search(r"D 64(, layers \d)?, dropout 0\.\d$", rows[name])
    assert lines[-1].startswith("parameters: on 12,101 items")


def test_parameters_are_those_of_the_model():
    """GRU4Rec by hand: embeddings, GRU without biases, dense layer."""
    gru = 101 * 64 + 3 * 128 * (64 + 128) + (128 + 1) * 64
    assert n_parameters("GRU4Rec", 100) == gru
    assert f"{gru:,}" in models_table(100)
    mask = 64  # BERT4Rec's embedding has one row for the mask, and a bias for each item
    assert n_parameters("BERT4Rec", 200) - n_parameters("BERT4Rec", 100) == 100 * (64 + 1)
    assert n_parameters("BERT4Rec", 1) > 2 * 64 + mask


@pytest.mark.parametrize("name", sorted(NINE))
def test_a_model_s_page_has_every_setting_of_its_file_with_its_meaning(name: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models", name]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    values = yaml.safe_load((properties_path() / "model" / f"{name}.yaml").read_text())
    assert [setting.name for setting in settings(name)] == list(values)
    words = shown.split()
    for setting in settings(name):
        assert yaml.safe_load(setting.default) == values[setting.name]
        assert setting.kind == type(values[setting.name]).__name__
        assert {setting.name, *setting.meaning.split()} <= set(words)
    assert ARXIV[name] in shown


def test_parameters_can_be_counted_for_any_number_of_items(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models", "GRU4Rec", "--items=100"]) == 0
    assert f"{n_parameters('GRU4Rec', 100):,} parameters on 100 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sigma"], "unknown model 'sigma'; did you mean 'SIGMA'? (one of ECHO, "),
        (["Caser"], "unknown model 'Caser'"),
        (["--items=0"], "--items must be at least 1, got 0"),
        (["--items=many"], "argument --items: invalid int value: 'many'"),
        (["SIGMA", "--epochs=3"], "models takes a NAME and --items=N, got '--epochs=3'"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["models", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_the_page_shows_the_defaults_that_a_run_has():
    for name in catalogue():
        config = Config(name, "", need_data=False)
        assert {each.name: config[each.name] for each in settings(name)} == {
            each.name: yaml.safe_load(each.default) for each in settings(name)
        }
        assert model_page(name, 10)
