"""`recbole-sigma models`."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from recbole_sigma import cli
from recbole_sigma.commands.models import catalogue, describe
from recbole_sigma.config.config import Config, properties_path

ARXIV = {
    "SIGMA": "2408.11451", "Mamba4Rec": "2403.03900", "ECHO": "2406.02638", "RecMamba": "2403.16371",
    "EMARec": "2206.11893",
    "LinRec": "2411.01537", "GRU4Rec": "1606.08117", "BERT4Rec": "1904.06690", "SASRec": "1808.09781",
    "FEARec": "2304.09184",
}  # fmt: skip


def test_the_list_has_every_model_its_paper_and_parameters_in_80_columns(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if "D 64" in line}
    baselines = {"Pop", "ItemKNN", "Ensemble"}  # which train nothing
    assert set(rows) == set(ARXIV) == set(catalogue()) - baselines < {line.partition(" ")[0] for line in lines}
    for name, number in ARXIV.items():
        model = describe(name, 12_101)
        assert f"arXiv {number}" in rows[name] and model.paper.endswith(number)
        assert f" {model.n_parameters:,} " in rows[name]
        assert re.search(r"D 64(, layers \d)?, dropout 0\.\d$", rows[name])


def test_parameters_are_those_of_the_model_on_any_number_of_items(capsys: pytest.CaptureFixture[str]):
    """GRU4Rec by hand: embeddings, GRU without biases, dense layer."""
    gru = 101 * 64 + 3 * 128 * (64 + 128) + (128 + 1) * 64
    assert cli.main(["models", "GRU4Rec", "--items", "100"]) == 0
    assert f"{gru:,} parameters on 100 items" in capsys.readouterr().out
    mask = 64  # BERT4Rec's embedding has one row for the mask, and a bias for each item
    one, hundred, two_hundred = (describe("BERT4Rec", items).n_parameters for items in (1, 100, 200))
    assert two_hundred - hundred == 100 * (64 + 1) and one > 2 * 64 + mask
    assert cli.main(["models", "Mamba4Rec", "--items=1000000000"]) == 0  # counted without their memory
    assert "64,000,072,320 parameters on 1,000,000,000 items" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(ARXIV))
def test_a_page_has_every_setting_with_its_meaning_and_the_default_of_a_run(name: str, capsys: Any):
    assert cli.main(["models", name]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and ARXIV[name] in shown
    values = yaml.safe_load((properties_path() / "model" / f"{name}.yaml").read_text())
    config = Config(name, "", need_data=False)
    settings = describe(name, 100).settings
    assert [setting for setting, *_ in settings] == list(values)
    for setting, default, kind, meaning in settings:
        assert yaml.safe_load(default) == values[setting] == config[setting] == config.settings()[setting]
        assert values[setting] is None or kind == type(values[setting]).__name__
        assert {setting, *meaning.split()} <= set(shown.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sigma"], ["'sigma'", "'SIGMA'"]),
        (["Casr"], ["'Casr'", "'Caser'"]),
        (["BPR"], ["'BPR'", "general"]),
        (["--items=0"], ["--items", "0", "from 1"]),
        (["--items=1000000000000000000"], ["--items", "1,000,000,000,000"]),
        (["SIGMA", "--epochs=3"], ["--epochs", "NAME", "--items"]),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(arguments: list[str], named: list[str], refused: Callable[..., str]):
    refused("models", *arguments, names=named)
