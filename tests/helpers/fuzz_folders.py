"""Hypothesis strategy for the folders of runs: whole, damaged, mixed up, of another version. See fuzz.py."""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from recbole_sigma import run
from recbole_sigma.errors import Interrupted
from recbole_sigma.training.checkpoint import Progress
from tests.helpers.fuzz_cases import SMALL, Case, tiny_inter

NAME = "Mamba4Rec-tiny-20260101-000000-abcdef"
ENDED = {**SMALL, "epochs": 2, "hidden_size": 8, "d_state": 2}
OTHERS = {
    "wider": ("Mamba4Rec", {**ENDED, "hidden_size": 12}),
    "seed": ("Mamba4Rec", {**ENDED, "seed": 3}),
    "gru": ("GRU4Rec", {**ENDED, "d_state": None}),
}
JUNK = ["", "\0", "{}", "[]", "null", "PK\x03\x04", "\x80\x04.", "seed: 1\n", "[[[", '{"a": NaN}', "x" * 5000]
VALUES: list[Any] = [None, -1, 0, 1, 2, 1e9, "text", [], {}, True, [1], {"a": 1}, "../../x", "nan", "1" * 400]


@functools.cache
def folders() -> dict[str, dict[str, str]]:
    """Files of runs by name: `ended` after one of two epochs, `complete`, and others that were ended."""
    made = {"ended": made_by("Mamba4Rec", ENDED, 1), "complete": made_by("Mamba4Rec", ENDED, None)}
    return {**made, **{name: made_by(model, settings, 1) for name, (model, settings) in OTHERS.items()}}


def made_by(model: str, settings: dict[str, Any], stop_after: int | None) -> dict[str, str]:
    """The files of a run on the tiny data, ended by Ctrl-C after so many epochs."""
    before, save = Path.cwd(), Progress.save

    def stopping(self: Progress) -> None:
        save(self)
        if len(self._trainer.rows) == stop_after:
            raise KeyboardInterrupt

    settings = {key: value for key, value in settings.items() if key != "dataset" and value is not None}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        os.chdir(place)
        try:
            Path("dataset/tiny").mkdir(parents=True)
            Path("dataset/tiny/tiny.inter").write_bytes(tiny_inter().encode("latin-1"))
            patch.setattr(Progress, "save", stopping)
            folder = run(model, "tiny", settings=settings).folder
        except Interrupted as ended:
            folder = Path(str(ended))
        finally:
            os.chdir(before)
        files = [path for path in Path(place, folder).iterdir() if not path.name.startswith("events")]
        return {path.name: path.read_bytes().decode("latin-1") for path in files}


def truncated(draw: Any, text: str) -> str:
    return text[: draw(st.integers(0, max(len(text) - 1, 0)))]


def changed(draw: Any, text: str) -> str:
    """Some bytes are others."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(text) - 1, 0)))
        text = text[:place] + chr(draw(st.integers(0, 255))) + text[place + 1 :]
    return text


def longer(draw: Any, text: str) -> str:
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from(JUNK)) + text[place:]


def junk(draw: Any, text: str) -> str:
    return draw(st.sampled_from(JUNK))


def digit(draw: Any, text: str) -> str:
    """One digit is another: what no parser notices."""
    places = [place for place, each in enumerate(text) if each.isdigit()]
    if not places:
        return text
    place = draw(st.sampled_from(places))
    return text[:place] + draw(st.sampled_from("0123456789")) + text[place + 1 :]


def value(draw: Any, text: str) -> str:
    """In a JSON file or a line of YAML, one value is another."""
    wrong = draw(st.sampled_from(VALUES))
    try:
        content = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        place = draw(st.integers(0, max(len(lines) - 1, 0)))
        lines[place : place + 1] = [f"{lines[place].partition(':')[0]}: {json.dumps(wrong)}"] if lines else []
        return "\n".join(lines)
    if isinstance(content, (dict, list)) and content:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        content[draw(st.sampled_from(keys))] = wrong
    return json.dumps(content)


DAMAGES: list[Callable[[Any, str], str]] = [truncated, changed, longer, junk, digit, value]


@st.composite
def folder_cases(draw: Any) -> Case:
    """`train --resume=` of a folder with none to three faults."""
    kind = draw(st.sampled_from(["ended", "complete"]))
    files, directories, links = dict(folders()[kind]), [], {}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted({*folders()["complete"], "state.pt"})))
        fault = draw(st.sampled_from(["damage", "damage", "damage", "gone", "other", "swap", "directory", "link"]))
        if f"{NAME}/{name}" in (*directories, *links):
            continue
        if fault == "damage" and name in files:
            files[name] = draw(st.sampled_from(DAMAGES))(draw, files[name])
        elif fault == "other":
            files[name] = folders()[draw(st.sampled_from(sorted(folders())))].get(name, "")
        elif fault == "swap" and name in files:
            files[name] = files.get(draw(st.sampled_from(sorted(files))), "")
        elif fault != "damage":
            files.pop(name, None)
            if fault == "directory":
                directories.append(f"{NAME}/{name}")
            elif fault == "link":
                links[f"{NAME}/{name}"] = draw(st.sampled_from(["nowhere", "/dev/null", ".", name]))
    argv = ["train", f"--resume={NAME}"]
    if draw(st.integers(0, 5)) == 0:
        argv.append(
            f"--{draw(st.sampled_from(['epochs', 'threads', 'seed', 'model', 'state']))}={draw(st.integers(-1, 3))}"
        )
    whole = files == folders()[kind] and len(argv) == 2 and not directories and not links
    as_run = files.get("config.yaml") == folders()[kind]["config.yaml"]  # else the message may be of any setting
    content = {f"{NAME}/{name}": text for name, text in files.items()}
    content["dataset/tiny/tiny.inter"] = tiny_inter()
    named = [NAME, "epochs", "threads", "state"] if as_run else []
    return Case("folders", argv, content, [NAME, *directories], links, named, right=whole)


def wrong_resume(case: Case, here: Path, out: str) -> str:
    """What is wrong with the numbers that a resumed run came to, or nothing."""
    result = json.loads((here / NAME / "result.json").read_text(encoding="utf-8"))
    complete = folders()["complete"]
    whole = json.loads(complete["result.json"])
    same_run = case.files.get(f"{NAME}/config.yaml") == complete["config.yaml"] and len(case.argv) == 2
    for part in ("valid", "test"):
        if same_run and result[part] != whole[part]:
            return f"{part} is {result[part]}, of the run that nobody touched {whole[part]}"
        if not all(0 <= number <= 1 for number in result[part].values()):
            return f"{part} out of range: {result[part]}"
    printed = [float(number) for line in out.splitlines()[2:5] for number in line.split()[1:]]
    if printed != [round(result[part][name], 4) for name in result["test"] for part in ("valid", "test")]:
        return f"printed {printed}"
    return ""
