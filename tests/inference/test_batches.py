"""Files of histories: the same answers from every kind of file and engine, resumed after a kill; mistakes are named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_sigma import Recommender, cli, run
from recbole_sigma.inference import batches
from tests.helpers.runs import OUR_SIZE, TINY, environment, options


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = str(tmp_path_factory.mktemp("saved"))
    return run("Mamba4Rec", "ml-100k", settings={**TINY, **OUR_SIZE, "epochs": 1, "checkpoint_dir": folder}).folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "PART_ROWS", 4)


@pytest.fixture
def histories(checkpoint: Path) -> list[list[str]]:
    random, items = np.random.default_rng(0), Recommender.load(checkpoint).items
    rows = [random.choice(items, n).tolist() for n in random.integers(1, 12, 10)]
    return [*rows, [], ["unknown", "50"]]


def write(path: Path, histories: list[list[str]]) -> Path:
    users = [f"u{number}" for number in range(len(histories))]
    frame = pd.DataFrame({"user_id": users, "history": histories})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.assign(history=[" ".join(row) for row in histories]).to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def recommend(checkpoint: Path, source: Path, output: Path, *more: str) -> int:
    return cli.main(["recommend", *options(checkpoint=checkpoint, input=source, output=output, k=3), *more])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_gets_the_lists_of_recommend(
    checkpoint: Path, histories: list[list[str]], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    source = write(tmp_path / f"in.{kind}", histories)
    expected = Recommender.load(checkpoint).recommend(histories, k=3)
    for ending in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"out.{ending}"
        assert recommend(checkpoint, source, output) == 0
        said = capsys.readouterr().out
        assert "12 histories" in said and "1 unknown" in said and "1 have popular items" in said
        if ending == "jsonl":
            lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
            lists = [(line["user_id"], line["items"], line["scores"], line["titles"]) for line in lines]
        else:
            frame = pd.read_csv(output, dtype={"item_id": str}) if ending == "csv" else pd.read_parquet(output)
            assert list(frame.columns) == ["user_id", "item_id", "score", "rank", "title"]
            groups = frame.groupby("user_id", sort=False)
            lists = [(user, *([*rows[name]] for name in ("item_id", "score", "title"))) for user, rows in groups]
        assert [user for user, *_ in lists] == [f"u{number}" for number in range(12)]
        assert [[*items] for _, items, *_ in lists] == [[item for item, _ in row] for row in expected]
        scores = [[score for _, score in row] for row in expected]
        np.testing.assert_allclose([row for _, _, row, _ in lists], scores, atol=1e-5)
        titles = Recommender.load(checkpoint).titles
        assert all([*row] == [titles[item] for item in items] for _, items, _, row in lists)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "out.jsonl", "out.csv", "out.parquet"}


def test_the_home_directory_has_its_short_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.jsonl").write_text('["50"]')
    assert recommend(checkpoint, Path("~/in.jsonl"), Path("~/out.csv")) == 0
    assert (tmp_path / "out.csv").exists()


def test_an_interrupted_file_is_resumed_where_it_stopped(
    checkpoint: Path, histories: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    source, output = write(tmp_path / "in.jsonl", histories), tmp_path / "out.jsonl"
    answer, answered = batches.answer, []

    def stopping(recommender: Any, request: Any, number: int, rows: Any) -> Any:
        answered.append(number)
        if len(answered) == 2:
            raise KeyboardInterrupt
        return answer(recommender, request, number, rows)

    monkeypatch.setattr(batches, "answer", stopping)
    assert recommend(checkpoint, source, output) == 130
    assert "resume with" in capsys.readouterr().err and not output.exists()
    assert recommend(checkpoint, source, output) == 0
    assert answered == [0, 1, 1, 2]
    resumed = output.read_text(encoding="utf-8")
    monkeypatch.setattr(batches, "answer", answer)
    assert recommend(checkpoint, source, output) == 0 and output.read_text(encoding="utf-8") == resumed


def test_parts_of_another_request_are_not_used(
    checkpoint: Path, histories: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, output = write(tmp_path / "in.jsonl", histories), tmp_path / "out.jsonl"
    monkeypatch.setattr(batches, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert recommend(checkpoint, source, output) == 130
    monkeypatch.undo()
    assert recommend(checkpoint, source, output, "--exclude_seen=False", "--candidates=50 181 1 2") == 0
    for line in output.read_text(encoding="utf-8").splitlines():
        assert {*json.loads(line)["items"]} <= {"50", "181", "1", "2"}


def test_a_killed_process_leaves_parts_that_the_next_one_uses(checkpoint: Path, tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text('["50", "181"]\n' * 100_000, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", "recommend"]
    command += options(checkpoint=checkpoint, input=source, output=output)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if len(written := [*tmp_path.glob(".out.csv.parts/*.part")]) >= 2:
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert written and not output.exists()
    (written[0].parent / ".000000009-4096-0-0.part.1.part").write_text("cut off", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in written}
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process:
        time.sleep(1)
        assert {path: path.stat().st_mtime_ns for path in written if path.exists()}.items() <= before.items()
        assert process.wait(timeout=120) == 0
    with output.open(encoding="utf-8") as file:
        assert sum(1 for _ in file) == 1 + 100_000 * 10


def test_ray_gives_the_same_file(checkpoint: Path, histories: list[list[str]], tmp_path: Path):
    source = write(tmp_path / "in.jsonl", histories)
    outputs = tmp_path / "local.csv", tmp_path / "ray.csv"
    assert recommend(checkpoint, source, outputs[0]) == 0
    assert recommend(checkpoint, source, outputs[1], "--engine=ray", "--jobs=2") == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.jsonl", b'["50"]\n{"user_id": 1}\n', [":2:", "history"]), ("a.jsonl", b'["50"]\n["50"\n', [":2:"]),
        ("a.jsonl", b'{"history": 50}\n', [":1:", "50"]), ("a.jsonl", b'["50"]\n\xff\n', [":2:"]),
        ("a.csv", b"user_id,items\nu,50\n", [":1:", "history"]), ("a.csv", b"", [":1:", "history"]),
        ("a.csv", b"user_id,history\nu,50,181\n", [":2:"]),
        ("a.csv", b"user_id,history\n" + 2 * b"u,50\n" + b"u,\xe9\n", [":4: not UTF-8"]),
        ("a.jsonl", b'["50"]\n{"user_id": "\\ud800", "history": ["50"]}', [":2: not UTF-8"]),
        ("a.csv", b'user_id,history\nu,"50\n', [":2:"]), ("a.parquet", b"no parquet", ["a.parquet"]),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(
    checkpoint: Path, tmp_path: Path, refused: Callable[..., str], name: str, content: bytes, named: list[str]
):
    (tmp_path / name).write_bytes(content)
    arguments = options(checkpoint=checkpoint, input=tmp_path / name, output=tmp_path / "out.csv")
    refused("recommend", *arguments, names=[name, *named])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([Decimal("1.50"), Decimal(2)], ["1.50", "2.00"]), ([b"a", "\u00e9".encode()], ["a", "\u00e9"]),
        ([date(2026, 1, 2), None], None), ([1.0, float("nan")], None),
    ],
)  # fmt: skip
def test_ids_of_users_are_text_or_numbers_and_are_there(
    checkpoint: Path, tmp_path: Path, users: list[Any], expected: list[str] | None, capsys: pytest.CaptureFixture[str]
):
    pq.write_table(pa.table({"user_id": users, "history": [["50"], ["181"]]}), tmp_path / "in.parquet")
    status = recommend(checkpoint, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    if expected is None:
        assert status == 2 and "in.parquet:2: user_id is missing" in capsys.readouterr().err
    else:
        found = [json.loads(line)["user_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert (status, found) == (0, expected)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_gives_an_empty_one(checkpoint: Path, tmp_path: Path, content: bytes):
    (tmp_path / "in.jsonl").write_bytes(content)
    assert recommend(checkpoint, tmp_path / "in.jsonl", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text() == "user_id,item_id,score,rank,title\n"
    assert recommend(checkpoint, tmp_path / "in.jsonl", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0 and table.column_names == ["user_id", "item_id", "score", "rank", "title"]


def test_one_history_is_printed_with_titles(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recommend", *options(checkpoint=checkpoint, history="50 181", k=2)]) == 0
    (best,) = Recommender.load(checkpoint).recommend([["50", "181"]], k=2)
    _, *lines = capsys.readouterr().out.splitlines()
    titles = Recommender.load(checkpoint).titles
    assert len(lines) == 2 and all(
        item in line and titles[item][:9] in line for (item, _), line in zip(best, lines, strict=True)
    )


def test_mistakes_in_the_command_are_named(checkpoint: Path, refused: Callable[..., str], tmp_path: Path):
    run_option, file = f"--checkpoint={checkpoint}", tmp_path / "in.jsonl"
    file.write_text('["50"]\n')
    refused("recommend", "--history=50", names=["--checkpoint"])
    refused("recommend", run_option, names=["--history", "--input"])
    refused("recommend", run_option, "--history=50", f"--input={file}", names=["--history", "--input"])
    refused("recommend", run_option, f"--input={file}", names=["--output"])
    refused("recommend", run_option, f"--input={file}", f"--output={file}", names=["--output"])
    refused("recommend", run_option, f"--input={file}", "--output=/no/where/out.csv", names=["--output", "/no/where"])
    refused("recommend", run_option, f"--input={file}", "--output=/proc/out.csv", names=["--output", "/proc/out.csv"])
    refused("recommend", run_option, "--history=50", "--engine=ray", names=["--engine", "--input"])
    refused("recommend", run_option, "--history=50", "--jobs=2", names=["--jobs", "--engine=ray"])
    refused("recommend", run_option, "--history=50", "--k=0", names=["--k", "0"])
    refused("recommend", run_option, "--history=50", "--colour=1", names=["--colour"])
    refused("recommend", run_option, "--history=5o", "--on_unknown=error", names=["5o"])
