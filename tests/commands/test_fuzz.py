"""Bad input: a right result, or one line that says what is wrong. Generated cases, and mistakes that were once let in.

FUZZ_EXAMPLES=10000 runs that many new cases of each kind instead of the same 40, and simplifies one that fails.
"""

import contextlib
import io
import json
import logging
import os
import re
import resource
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile

from recbole_sigma import cli
from recbole_sigma.config.config import Config
from recbole_sigma.config.values import read_config_file
from tests.helpers import fuzz
from tests.helpers.fuzz import CANARY, MODELS, RUN, SMALL, TINY, Case

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
SECONDS = 60  # of a case, on a machine that is busy with other tests
ADDRESS_SPACE = 3 * 2**30  # bytes beyond what the process has before the first case
PREFIX = "recbole-sigma: error: "
Refusal = Callable[..., str]  # the fixture `refusal`
RUN_DIRECTORY = re.compile(r"[\w-]+-.*-\d{8}-\d{6}-[0-9a-f]{6}")
HEADER = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = [f"u{n % 3}\ti{n % 7}\t{n}" for n in range(20)]
examples = profile(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 40,
    phases=[Phase.generate] if EXAMPLES == 40 else list(Phase),
    print_blob=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Hang(BaseException):
    """Not an Exception: nothing that it interrupts may take it for one of its own."""


@pytest.fixture(scope="module", autouse=True)
def limits() -> Iterator[None]:
    """Limit the memory of this process: what it cannot get is refused before the machine is full."""
    for model in ("Mamba4Rec", "SIGMA"):  # imports and compilation, which no case should wait for
        small = [f"--{key}={value}" for key, value in {**SMALL, "model": model}.items()]
        check(Case(["train", *small], fuzz.DATA, right=True))
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(FileNotFoundError):  # where there is no /proc there is no limit
        used = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 2**10
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check(case: Case) -> None:
    """Run a case in a directory of its own. It ends within SECONDS with a right result, or is refused in one line."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        here = Path(root, "some", "where")  # so deep that files written to `..` are seen
        for name, content in case.files.items():
            path = here / name
            (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            elif content is not None:
                path.write_bytes(content)
        here.mkdir(parents=True, exist_ok=True)
        files = set(Path(root).rglob("*"))
        os.chdir(here)
        try:
            status, out, err = run(case.argv)
        finally:
            os.chdir(before)
        if status == 2:
            check_refusal(case, err)
        else:
            assert status == 0, (status, err)
            if case.argv[0] == "train" and "--help" not in case.argv and "-h" not in case.argv:
                check_result(case, here / out.splitlines()[-1])
        for path in set(Path(root).rglob("*")) - files:
            inside = any(RUN_DIRECTORY.fullmatch(part) for part in path.relative_to(root).parts)
            assert path.name != CANARY and (inside or path.is_dir()) and path.suffix != ".part", f"left behind: {path}"


def run(argv: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `recbole-sigma argv`, as a process has them."""

    def stop(*_: Any) -> None:
        raise Hang

    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    logging.getLogger("recbole_sigma").handlers.clear()  # they write to the stderr of an earlier case
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 5)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            status = cli.main(argv)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]


def check_refusal(case: Case, err: str) -> None:
    assert not case.right, f"nothing is wrong with this input: {err}"
    assert err.count(PREFIX) == 1 and "Traceback" not in err and err.endswith("\n"), err
    message = err.splitlines()[-1].removeprefix(PREFIX)
    assert message and message.isprintable() and len(message) < 1000, message
    assert not case.named or any(name and name in message for name in case.named), message


def check_result(case: Case, folder: Path) -> None:
    """What a training has written: its settings repeat it, ranks and metrics are possible, targets are items."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics = {split: result[split] for split in ("valid", "test")}
    assert all(each and all(0 <= number <= 1 for number in each.values()) for each in metrics.values()), metrics
    if folder.name == RUN:  # resumed: as the run that was never interrupted
        complete = fuzz.run_files("complete")
        if case.files.get(f"{RUN}/config.yaml") == complete["config.yaml"] and len(case.argv) == 2:
            assert metrics == {split: json.loads(complete["result.json"])[split] for split in metrics}
        return
    settings = {key: given.value for key, given in read_config_file(folder / "config.yaml").items()}
    again = Config(settings["model"], settings["dataset"], config_files=[folder / "config.yaml"], need_data=False)
    assert again.settings() == settings
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    for split in metrics:
        with np.load(folder / f"ranks-{split}.npz", allow_pickle=False) as saved:
            ranks = dict(saved)
        assert len(ranks["rank"]) and np.all((ranks["rank"] >= 1) & (ranks["rank"] <= len(items)))
        assert set(ranks["target"]) <= set(items)
    content = case.files["dataset/tiny/tiny.inter"]
    if case.right and isinstance(content, bytes):  # each user's last item in time; equal times as in the file
        rows = [line.split("\t") for line in content.decode().splitlines()[1:]]
        users = Counter(user for user, *_ in rows)
        last = {user: item for user, item, _ in sorted(rows, key=lambda row: float(row[2])) if users[user] >= 3}
        assert dict(zip(ranks["user"].tolist(), ranks["target"].tolist(), strict=True)) == last
        assert ranks["history_length"].tolist() == [users[user] - 1 for user in ranks["user"]]


@examples
@given(fuzz.files())
def test_any_file_is_read_right_or_refused_in_one_line(case: Case) -> None:
    check(case)


@examples
@given(fuzz.settings())
def test_any_setting_is_obeyed_or_refused_in_one_line(case: Case) -> None:
    check(case)


@examples
@given(fuzz.command_lines())
def test_any_command_line_is_obeyed_or_refused_in_one_line(case: Case) -> None:
    check(case)


@examples
@given(fuzz.run_directories())
def test_any_run_directory_is_resumed_right_or_refused_in_one_line(case: Case) -> None:
    check(case)


# --- mistakes that were once let in


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """`refusal(model, setting=value, ..., files={name: text})` -> the line of error of a `train` on the tiny data."""

    def train(model: str = "Mamba4Rec", /, files: dict[str, str] | None = None, **given: Any) -> str:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "dataset" / "tiny").mkdir(parents=True)
        for name, text in {"tiny.inter": TINY.decode(), **(files or {})}.items():
            (tmp_path / "dataset" / "tiny" / name).write_text(text, encoding="utf-8")
        own = MODELS.get(given.get("model", model), {})
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**SMALL, **own, "model": model, **given}))
        status, out, err = run(["train", "--config_files=base.yaml"])
        assert (status, out, err.count(PREFIX)) == (2, "", 1)
        return err.splitlines()[-1]

    return train


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"threshold": {"rating": 3}}, ["'rating'", "timestamp"]),
        ({"threshold": {"timestamp": 3}}, ["'timestamp'"]),
        ({"val_interval": {"item_id": "[1,2]"}}, ["'item_id'", "token"]),
        ({"val_interval": {"timestamp": ["1"]}}, ["'timestamp'", "float"]),
        ({"normalize_field": ["timestmp"]}, ["'timestmp'", "timestamp"]),
        ({"normalize_field": ["timestamp"], "normalize_all": True}, ["normalize_all"]),
        ({"alias_of_item_id": ["class"]}, ["'class'", "user_id"]),
        ({"alias_of_user_id": ["item_id"]}, ["'item_id'"]),
        ({"unused_col": {"user": ["age"]}}, [".user"]),
        ({"unused_col": {"inter": ["item_id"]}}, ["'item_id'"]),
        ({"load_col": {"inter": "*"}, "unload_col": {"inter": ["item_id"]}}, ["unload_col"]),
        ({"local_rank": 0}, ["'local_rank'"]),
        ({"numerical_features": ["timestamp"]}, ["'timestamp'"]),
        ({"MAX_ITEM_LIST_LENGTH": 10**12}, ["1000000", "1000000000000"]),
        ({"USER_ID_FIELD": "item_length"}, ["'item_length'"]),
        ({"TIME_FIELD": "item_id_list"}, ["'item_id_list'"]),
        ({"d_state": 2**31 - 1, "expand": 2**31 - 1}, ["2147483647"]),
        ({"model": "nn"}, ["'nn'"]),
        ({"model": "os:system"}, ["base.yaml", "os:system"]),
    ],
)
def test_a_wrong_setting_is_refused_before_it_does_harm(refusal: Refusal, given: dict[str, Any], named: Any) -> None:
    said = refusal(**given)
    assert all(each in said for each in [next(iter(given)), *named]), said


@pytest.mark.parametrize(
    ("name", "header", "rows", "named"),
    [
        ("tiny.inter", f"{HEADER}\tx:float_seq", [f"{row}\t1 two" for row in ROWS], ["tiny.inter:2", "x", "two"]),
        ("tiny.inter", f"{HEADER}\titem_id_list:token", [f"{row}\ta" for row in ROWS], ["'item_id_list'"]),
        ("tiny.inter", f"{HEADER}\titem_length:float", [f"{row}\t1" for row in ROWS], ["'item_length'"]),
        ("tiny.inter", f"{HEADER}\tneg_item_id:token", [f"{row}\ta" for row in ROWS], ["'neg_item_id'"]),
        ("tiny.inter", HEADER, [*ROWS, "u1\ti1\t١٢"], ["tiny.inter:22", "timestamp", "'١٢'"]),
        ("tiny.item", "name:token", ["a"], ["tiny.item:1", "'item_id'", "ITEM_ID_FIELD", "name"]),
        ("tiny.item", "item_id:token\ttimestamp:float", ["i1\t1"], ["'timestamp'", ".inter", ".item"]),
        ("tiny.user", "user_id:token", [], ["tiny.user:2"]),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_line(
    refusal: Refusal, name: str, header: str, rows: list[str], named: list[str]
) -> None:
    read = {"inter": "*"} | {kind: "*" for kind in ("item", "user") if name.endswith(kind)}
    said = refusal(files={name: "\n".join([header, *rows, ""])}, load_col=read)
    assert all(each in said for each in named), said


def test_masking_needs_an_item_outside_the_history(refusal: Refusal) -> None:
    rows = [f"u{n % 3}\ti{n // 3 % 4}\t{n}" for n in range(24)]
    said = refusal("BERT4Rec", files={"tiny.inter": "\n".join([HEADER, *rows, ""])}, train_mode="prefix")
    assert "transform" in said and "u0" in said


def test_a_constant_list_of_numbers_can_be_normalised() -> None:
    rows = [f"{row}\t{'3 3' if number % 2 else ''}" for number, row in enumerate(ROWS)]
    settings = {**SMALL, **MODELS["Mamba4Rec"], "model": "Mamba4Rec", "normalize_all": True}
    table = "\n".join([f"{HEADER}\tx:float_seq", *rows, ""]).encode()
    files = {"base.yaml": yaml.safe_dump(settings).encode(), "dataset/tiny/tiny.inter": table}
    check(Case(["train", "--config_files=base.yaml"], files))
