"""RecBole 1.2.0 runs on the NumPy, pandas and torch that are installed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset
from recbole.model.sequential_recommender import GRU4Rec

from recbole_sigma import compat
from recbole_sigma.config.config import Config

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "hyperopt", "kmeans_pytorch"):
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Blocked())
"""

BUILD = """
import recbole.data, recbole.trainer, recbole.evaluator
from recbole.model.sequential_recommender import gru4rec, sasrec, bert4rec, fearec
from recbole_sigma import Config
for model in ("GRU4Rec", sasrec.SASRec, "BERT4Rec", "FEARec"):
    assert Config(model, "ml-100k")["epochs"] == 300
from recbole.config import Config as RecBoleConfig
RecBoleConfig(gru4rec.GRU4Rec, "ml-100k", config_dict={"train_neg_sample_args": None})
import torch
assert not torch.is_anomaly_enabled(), "SINE switches it on"
print("built")
"""


def run_python(code: str, cwd: Path, *options: str) -> str:
    """The output of a new Python process; fails the test with its stderr."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def write_movies(folder: Path) -> Path:
    """A data set `movies` with a missing rating, a missing year and two films without a class."""
    target = folder / "movies"
    target.mkdir()
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(6):
        inter += [f"u{user}\ti{(user + step) % 8}\t{step}\t{100 + step}" for step in range(6)]
    inter[3] = "u0\ti2\t\t102"
    (target / "movies.inter").write_text("\n".join(inter) + "\n")
    item = ["item_id:token\tyear:token\tclass:token_seq"]
    item += [f"i{each}\t{1990 + each}\tdrama comedy" for each in range(6)] + ["i6\t\t", "i7\t1990\t"]
    (target / "movies.item").write_text("\n".join(item) + "\n")
    return folder


def movies_config(folder: Path, model: type) -> Config:
    settings = {
        "data_path": str(folder), "use_gpu": False, "epochs": 1, "show_progress": False, "MAX_ITEM_LIST_LENGTH": 4,
        "topk": 3, "valid_metric": "NDCG@3",
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "year", "class"]},
    }  # fmt: skip
    return Config(model, "movies", settings=settings)


@pytest.mark.parametrize("first", ["import recbole_sigma", "import recbole.config, recbole.data"])
def test_everything_imports_without_ray_hyperopt_and_kmeans_in_either_order(first: str, tmp_path: Path) -> None:
    output = run_python(f"{BLOCK}\n{first}\nimport recbole_sigma\n{BUILD}", tmp_path)
    assert output == "built\n"


def test_training_with_recboles_own_loader_and_trainer_gives_no_warnings(tmp_path: Path) -> None:
    """Deprecations are errors here: those of RecBole's modules must be ignored, and no other warning."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import warnings
from pathlib import Path
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import GRU4RecF
from recbole.trainer import Trainer
from test_compat import movies_config, write_movies
config = movies_config(write_movies(Path(".")), GRU4RecF)
data = create_dataset(config)
train, valid, test = data_preparation(config, data)
Trainer(config, GRU4RecF(config, train._dataset)).fit(train, valid, saved=False, verbose=False)
warnings.warn_explicit("real", UserWarning, "a.py", 1, module="recbole.data.dataset")
"""
    errors = ("-W", "error::DeprecationWarning", "-W", "error::FutureWarning")
    output = run_python(code, tmp_path, *errors)
    assert output.splitlines() == ["a.py:1: UserWarning: real"]


def test_missing_values_are_filled_and_missing_sequences_are_empty(tmp_path: Path) -> None:
    data = create_dataset(movies_config(write_movies(tmp_path), GRU4Rec))
    ratings = data.inter_feat["rating"]
    assert not ratings.isna().any()
    assert ratings[2] == pytest.approx(np.delete(np.tile(np.arange(6.0), 6), 2).mean())
    i0, i6, i7 = (data.token2id("item_id", item) for item in ("i0", "i6", "i7"))
    assert data.item_feat["year"].to_numpy()[i6] == 0, "a missing token is padding"
    assert [len(data.item_feat["class"][item]) for item in (i0, i6, i7)] == [2, 0, 0]


def test_tables_of_recbole_keep_their_type_in_pandas() -> None:
    table = compat._Table({"a": [[1], [2, 3]], "b": [1, 2]}).iloc[::-1].reset_index(drop=True)
    assert list(table["a"].agg(len)) == [2, 1]
    assert table["b"].agg("sum") == 3
    assert table["b"].values.flags.writeable


def test_applying_twice_changes_nothing_and_numpy_keeps_the_names_that_it_has() -> None:
    patched = RecBoleConfig.compatibility_settings
    before = {name: getattr(np, name) for name in ("bool", "float", "long", "str")}
    compat.apply()
    compat._restore_numpy_names()
    assert RecBoleConfig.compatibility_settings is patched
    assert before == {name: getattr(np, name) for name in before}
    assert np.float is np.float64  # type: ignore[attr-defined]
    assert np.__version__ < "2" or not hasattr(np, "unicode"), "only what RecBole's code reads is added"
    assert pd.read_csv.__module__.startswith("pandas"), "pandas itself is not patched"
