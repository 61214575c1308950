"""Hypothesis strategies for what users have on disk and type: right and broken files, settings, arguments, runs."""

import functools
import json
import math
import os
import random
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from recbole_sigma import run
from recbole_sigma.config.config import Config
from recbole_sigma.errors import Interrupted
from recbole_sigma.training.callbacks import Callback

CANARY = "touched-by-a-value"  # the file that code in a value would make
RUN = "Mamba4Rec-tiny-20260101-000000-abcdef"
SMALL = {
    "dataset": "tiny", "epochs": 1, "threads": 1, "use_gpu": False, "show_progress": False, "state": "WARNING",
    "MAX_ITEM_LIST_LENGTH": 6,  # FEARec needs an even one
}  # fmt: skip
_MAMBA, _ATTENTION = {"hidden_size": 8, "d_state": 2}, {"hidden_size": 8, "inner_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("Mamba4Rec", "SIGMA", "ECHO", "RecMamba"), _MAMBA),
    **dict.fromkeys(("SASRec", "BERT4Rec", "FEARec"), _ATTENTION),
    "LinRec": {"hidden_size": 8},
    "GRU4Rec": {"hidden_size": 8, "embedding_size": 8},
}
# Right values above these are slow, or start processes and threads; a number of 19 digits is refused for every setting.
_LIMITS = {"epochs": 2, "threads": 2, "worker": 0, "nproc": 1, "world_size": 1, "n_layers": 2, "num_layers": 2}
_LIMITS |= dict.fromkeys(("hidden_size", "embedding_size", "inner_size", "d_state", "d_conv", "expand"), 64)
_LIMITS |= {"MAX_ITEM_LIST_LENGTH": 64, "n_heads": 64}


@dataclass(frozen=True)
class Case:
    """`argv` for `recbole-sigma`, in a directory with `files`: bytes, None for a directory, a Path for a link to it."""

    argv: list[str]
    files: Mapping[str, bytes | Path | None] = field(default_factory=dict)
    named: tuple[str, ...] = ()  # the message of a refusal holds one of these
    right: bool = False  # nothing is wrong with it: it must not be refused

    def __repr__(self) -> str:
        """Short: Hypothesis prints how to run it again."""
        drawn = {name: content[:300] if isinstance(content, bytes) else content for name, content in self.files.items()}
        return f"{[argument[:200] for argument in self.argv]} {drawn if len(drawn) < 5 else list(drawn)}"


def pick(draw: st.DrawFn, options: Sequence[Any]) -> Any:
    return draw(st.sampled_from(options))


# --- words: what has been typed wrongly, and what might be taken for something else

_TEXT = [
    "", " ", "0", "-1", "007", "7 ", "+3", ".5", "5.", "1e400", "-1e400", "nan", "NaN", "inf", "1e308", "0x10",
    "9223372036854775808", "1_000", "1,5", "--1", "1e", "1e5", "-0.0", "١٢", "NA", "null", "None", "#N/A", "[PAD]",
    '"', '"a', 'a"b"c', "'", "é", "日本", "😀", "e\u0301", "\u202e", "\u200b", "\x0b", "\x1c", "\u2028", "\ufeff",
    "\x7f", "a b", "a,b", "a:b", "#", "\\", "\\t", "=1+1", "../../etc", "a/b", "%s", "{}", "x" * 300, "y" * 200_000,
]  # fmt: skip
_TITLES = [
    "user_id", "user_id:", ":token", ":", "", "user_id:TOKEN", "user_id:token:token", "userid:token", "item_id:float",
    "timestamp:token", "user_id:token_seq", "item_id:token", "rating:float", "item_id_list:token", "item_length:float",
    "neg_item_id:token", "x:float_seq", "timestamp_list:float_seq", " user_id:token", "user_id :token", "[PAD]:token",
]  # fmt: skip
_CODE = [
    f"__import__('os').system('touch {CANARY}')", f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"open('{CANARY}', 'w')", f"$(touch {CANARY})", f"`touch {CANARY}`", "!!python/name:os.system", "!!binary aGk=",
]  # fmt: skip
_WORDS = [
    "1e3", "010", "12:30", "yes", "~", "=", "<<", "2024-01-01", "user_id", "item_id", "timestamp", "rating", "class",
    "item_id_list", "item_length", "label", "inter", "item", "user", "LS", "RS", "valid_and_test", "full", "uni100",
    "labeled", "uniform", "popularity", "none", "NDCG", "ndcg@10", "Hit@5", "Recall", "AUC", "max_norm", "adam", "cpu",
    "0,1", "paper", "padded", "utf-8", "*", "first", "mask_itemseq", "[0,inf)", "[5,1]", "(a,b)", "[", "[0,inf);[3,4]",
    "DEBUG", "debug", "CE", "BPR", "BCE", "sequence", *_CODE,
]  # fmt: skip
_YAML = [
    "a: [1, 2\n", "epochs: 1\nepochs: 2\n", "a: &x [1]\nb: *x\n", "- 1\n", "text\n", "a: 1\n---\nb: 2\n",
    "a: '\x07'\n", "\tepochs: 1\n", "epochs:1\n", "epochs: !!int '1'\n", "%YAML 9.9\n---\nepochs: 1\n", "{epochs: 1\n",
    "<<: {seed: 1}\n", "epochs: " + "[" * 5000, "epochs: " + "{a: " * 3000, "\ufeffepochs: 1\n", "1.5: 2\n",
    "epochs: |\n  1\n", "epochs: 1 # \x00\n", "---\n...\n---\n", "\xff\xfe", "seed: 0x10\n", "seed: 12:30:45\n",
    "epochs: " + "1" * 5000, "x" * 100_000 + ": 1\n", "config_files: base.yaml\n", "model: [SIGMA]\n",
    "dataset: {a: 1}\n", "model: os:system\n",
]  # fmt: skip
_ARGUMENTS = [
    "train", "models", "env", "--help", "-h", "--version", "--", "-", "-x", "SIGMA", "--model", "--items=5", "--items",
    "--items=-1", "--items=9" + "9" * 5000, "--epochs=1", "--epochs", "1", "--=1", "=", "--a=b=c", "--config_files=",
    "--config_files=[base.yaml]", "--config_files={a: 1}", "--config_files=dataset", "--config_files=[[1]]",
    "--config_files=/dev/zero", "--config_files=/dev/null", "--dataset=", "--dataset=..", "--dataset=../dataset/tiny",
    "--dataset=/dev/null", "--dataset=a\nb", "--dataset=" + "d" * 5000, "--data_path=", "--data_path=base.yaml",
    "--checkpoint_dir=base.yaml", "--checkpoint_dir=", "--checkpoint_dir=a/b/c", "--checkpoint_dir=/proc/nowhere",
    "--model=__class__", "--model=nn", "--model=os:system", "--model=nowhere:Model", "--model=:", "--resume=dataset",
    "--" + "k" * 100_000 + "=1", "--epochs=" + "1" * 10_000, "\udcff", *(f"--model={name}" for name in (
        "DIEN", "BERT4Rec", "KSR", "GRU4RecF", "S3Rec", "Caser", "TransRec", "NARM", "SRGNN", "FPMC", "SHAN", "HGN",
        "FOSSIL", "STAMP", "NPE", "HRM", "RepeatNet", "SINE", "CORE", "LightSANs", "NextItNet", "GCSAN", "FDSA", "DIN",
    )),
]  # fmt: skip


# --- data files

HEADER = ["user_id:token", "item_id:token", "timestamp:float"]
_cell = st.sampled_from(_TEXT) | st.text(max_size=4) | st.integers().map(str)
_DATA_SETTINGS = [
    {"time_order": "recbole"}, {"rm_dup_inter": "first"}, {"rm_dup_inter": "last"}, {"normalize_all": True},
    {"normalize_field": ["timestamp"]}, {"normalize_field": ["price"]}, {"load_col": {"inter": ["user_id"]}},
    {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": "*"}}, {"val_interval": {"price": "[0,3]"}},
    {"val_interval": {"item_id": ["i1", "i2"]}}, {"val_interval": {"class": ["a1"]}}, {"threshold": {"rating": 1}},
    {"user_inter_num_interval": "[3,inf)"}, {"item_inter_num_interval": "[2,inf)"}, {"seq_len": {"class": 1}},
    {"unused_col": {"inter": ["timestamp"]}}, {"numerical_features": ["price"]}, {"alias_of_item_id": ["class"]},
    {"loss_type": "BPR"}, {"train_mode": "sequence"}, {"by_length": False}, {"MAX_ITEM_LIST_LENGTH": 1},
    {"MAX_ITEM_LIST_LENGTH": 50},
]  # fmt: skip


def text_of(table: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in table).encode("utf-8", "surrogatepass")


TINY = text_of([HEADER, *([f"u{n % 12}", f"i{(n * 7) % 13}", str(n)] for n in range(60))])
DATA = {"dataset/tiny/tiny.inter": TINY}


@st.composite
def _interactions(draw: st.DrawFn) -> list[list[str]]:
    """Rows of user, item, time: some users with one or two interactions, repeated pairs, equal times."""
    order, n_items = random.Random(draw(st.integers(0, 99))), pick(draw, [1, 2, 5, 15, 15])
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=12))
    users = [f"u{user}" for user, length in enumerate(lengths) for _ in range(length)]
    order.shuffle(users)
    integers = draw(st.booleans())
    times = [order.randrange(20) if integers else order.random() * 1e9 for _ in users]
    return [[user, f"i{order.randrange(n_items)}", str(time)] for user, time in zip(users, times, strict=True)]


def _break_table(draw: st.DrawFn, table: list[list[str]]) -> None:
    """One fault in a cell, a column, a row, the header, or the number of rows."""
    fault = pick(draw, ["cell", "cell", "column", "row", "header", "more", "rows"])
    row, cells = pick(draw, table), draw(st.lists(_cell, min_size=1, max_size=4))
    column = draw(st.integers(0, max(len(row) - 1, 0)))
    if fault == "cell":
        row[column : column + 1] = cells[:1]
    elif fault == "column":
        for each in table[1:]:
            each[column : column + 1] = cells[:1]
    elif fault == "row":
        row[column : column + draw(st.integers(0, 1))] = pick(draw, [[], cells[:1]])
    elif fault == "header":
        table[0][column : column + 1] = [draw(st.sampled_from(_TITLES) | st.text(max_size=5))]
    elif fault == "more":
        title = pick(draw, ["rating:float", "class:token_seq", "x:float_seq", "label:float", *_TITLES])
        for number, each in enumerate(table):
            each.append(cells[number % len(cells)] if number else title)
    else:
        others = [table[:1], [[], *table, []], table[:2], table * 2, table[1:] or table, table[:1] + table[:0:-1]]
        table[:] = [list(each) for each in pick(draw, others)]


def _break_bytes(draw: st.DrawFn, text: bytes) -> bytes:
    """A file that is in another encoding, cut, or not text."""
    at = draw(st.integers(0, max(len(text) - 1, 0)))
    inserted = [b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b"\r", b"\x1a", draw(st.binary(max_size=20)), b"z" * 2_000_000]
    return bytes(pick(draw, [
        b"\xef\xbb\xbf" + text, text.replace(b"\n", b"\r\n"), text.replace(b"\n", b"\r"), text.replace(b"\t", b","),
        text.replace(b"\t", b"  "), text.decode("utf-8", "replace").encode("utf-16"), zlib.compress(text), b"",
        text[:at], text.rstrip(b"\n"), b"\n" + text, *(text[:at] + each + text[at:] for each in inserted),
    ]))  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> Case:
    """`train` on atomic files: right ones, and ones with up to three faults, read under a setting or two."""
    rows, model = draw(_interactions()), pick(draw, [*MODELS, *["Mamba4Rec"] * 6])
    side = pick(draw, ["", "", "user", "item"])
    table, faults = [list(HEADER), *map(list, rows)], draw(st.integers(0, 2))
    for _ in range(faults):
        _break_table(draw, table)
    text = text_of(table)
    if draw(st.integers(0, 3)) == 0:
        text, faults = _break_bytes(draw, text), 1
    settings: dict[str, Any] = {}
    for setting in draw(st.lists(st.sampled_from(_DATA_SETTINGS), max_size=2)):
        settings |= setting
    content: dict[str, Any] = {
        "base.yaml": yaml.safe_dump({**SMALL, **MODELS[model]}).encode(),
        "drawn.yaml": yaml.safe_dump(settings).encode(),
        "dataset/tiny/tiny.inter": text,
    }
    if side:
        more = [[f"{side[0]}{n}", f"a{n % 3} b", str(n / 2), f"{n} 0.5"] for n in range(pick(draw, [0, 15]))]
        more.insert(0, [f"{side}_id:token", "class:token_seq", "price:float", "vector:float_seq"])
        for _ in range(draw(st.integers(0, 2))):
            _break_table(draw, more)
        content[f"dataset/tiny/tiny.{side}"] = text_of(more)
    if draw(st.integers(0, 19)) == 0:  # something else with the file's name
        faults, other = 1, pick(draw, [None, Path("nowhere"), Path("tiny.inter"), Path("../../base.yaml")])
        content["dataset/tiny/tiny.inter"] = other
    users = [user for user, *_ in rows]
    enough = any(users.count(user) >= 4 for user in users)
    named = ("tiny", "drawn.yaml", "train_neg_sample_args", "transform", "_col", "_interval", "seq_len", *settings)
    argv = ["train", f"--model={model}", "--config_files=base.yaml,drawn.yaml"]
    return Case(argv, content, named, right=enough and not faults and not settings and not side)


# --- settings and command lines

_number = st.sampled_from([
    0, 1, 2, 3, -1, 5, 64, 1000, 10**6, 10**18, -(10**18), 2**31, 2**63, 10**40, 0.0, 0.5, 1.0, -0.5, 1.5, 1e18, 1e300,
    1e-300, math.nan, math.inf, -math.inf,
])  # fmt: skip
_word = st.sampled_from(_WORDS) | st.text(max_size=6) | st.sampled_from(_TEXT[:-1])
_scalar = st.none() | st.booleans() | _number | _word
_value = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_word | _number | st.booleans(), inner, max_size=3),
    max_leaves=6,
)


@functools.cache
def defaults() -> dict[str, Any]:
    """Every setting of the models that are tried, and its default."""
    configs = [Config(model, "", need_data=False).settings() for model in MODELS]
    return {key: value for config in configs for key, value in config.items() if key not in ("model", "dataset")}


@st.composite
def _setting(draw: st.DrawFn) -> tuple[str, Any]:
    """A known name, sometimes misspelt, and a value: of the right kind more often than not."""
    key = pick(draw, [*defaults(), "resume", "world_size", "local_rank", "port", "encoding"])
    default = defaults().get(key)
    if draw(st.integers(0, 3)) == 0:
        key, value = pick(draw, _DATA_SETTINGS).copy().popitem()
    elif isinstance(default, bool):
        value = draw(st.booleans())
    elif isinstance(default, (int, float)):
        value = pick(draw, [default, 1, 2, 3, 4, 0, 0.5, 1.0, 0.1, 7, 10**5, 10**9, 2**31 - 1, 1e-300, 1e30])
    elif isinstance(default, dict):
        value = draw(st.dictionaries(st.sampled_from([*default, *_WORDS]), _scalar, max_size=2))
    else:
        value = draw(_word | st.lists(_word, max_size=3))
    if draw(st.integers(0, 2)) == 0:
        value = draw(_value)
    limit = _LIMITS.get(key, math.inf)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and limit < value < 10**18:
        value = limit
    if draw(st.integers(0, 19)) == 0:
        key = draw(st.sampled_from([key.lower(), key.upper(), key[:-1], f"{key}s", f" {key}", "", f"{key}.x"]) | _word)
    return key, value


@st.composite
def settings(draw: st.DrawFn) -> Case:
    """`train` with one to three settings of any value, on the command line or in a file, in any style of YAML."""
    model = draw(st.sampled_from([*MODELS, *["Mamba4Rec"] * 4, "SIGMA", "SIGMA"]))
    drawn, argv = dict(draw(st.lists(_setting(), min_size=1, max_size=3))), ["train", "--config_files=base.yaml"]
    content = {"base.yaml": yaml.safe_dump({**SMALL, **MODELS[model], "model": model}).encode(), **DATA}
    how = pick(draw, ["arguments", "arguments", "file", "file", "broken file"])
    if how == "arguments":
        for key, value in drawn.items():
            text = yaml.dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
            text = text.removesuffix("...\n").strip("\n")
            argv.append(f"--{key}={text if text.isprintable() else repr(value)}")
    else:
        argv[1] += ",drawn.yaml"
        text = yaml.dump(drawn, default_flow_style=pick(draw, [None, True, False]), allow_unicode=True)
        broken = pick(draw, _YAML) if how == "broken file" else ""
        content["drawn.yaml"] = (broken + text * draw(st.integers(not broken, 1))).encode("utf-8", "replace")
    names = [part for key in map(str, drawn) for part in (key, key.partition("=")[0], key[:50], repr(key)[1:-1])]
    return Case(argv, content, (*names, "drawn.yaml", "tiny.inter", "learning_rate", "--"))


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """Any arguments. What would be right is made small by base.yaml, which comes first."""
    anything = st.text(max_size=8).filter(lambda text: "\0" not in text)
    setting = st.builds("--{}={}".format, st.sampled_from([*defaults()]), anything)
    argv = [pick(draw, ["train", "train", "models", "env", "resume", ""])]
    argv += draw(st.lists(st.sampled_from(_ARGUMENTS) | anything | setting, max_size=5))
    for number, argument in enumerate(argv):
        key, _, value = argument.removeprefix("--").partition("=")
        if key in _LIMITS and value.strip().isdecimal() and int(value[:9]) > 2:
            argv[number] = "--epochs=2"
    small = "--config_files=base.yaml"
    if any(argument.startswith("--config_files") for argument in argv):
        small = "--dataset=tiny" if not any("--dataset" in argument for argument in argv) else "--epochs=1"
    argv[1:1] = [small] if argv[0] == "train" else []
    return Case(argv, {"base.yaml": yaml.safe_dump(SMALL).encode(), **DATA})


# --- run directories

_RUN_SETTINGS = {**SMALL, **MODELS["Mamba4Rec"], "epochs": 2}
_VALUES: list[Any] = [None, -1, 0, 1, 2, 1e9, "text", [], {}, True, [1], {"a": 1}, "../../x", "nan", "1" * 400]
_JUNK = [
    b"", b"\0", b"{}", b"[]", b"null", b"PK\x03\x04", b"\x80\x04.", b"seed: 1\n", b"[[[", b'{"a": NaN}', b"x" * 5000,
]  # fmt: skip


class _Stop(Callback):
    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        raise KeyboardInterrupt


@functools.cache
def run_files(kind: str) -> dict[str, bytes]:
    """The files of a `complete` run, of one `interrupted` after one of two epochs, or of one with an `other` width."""
    settings = {**_RUN_SETTINGS, "hidden_size": 12 if kind == "other" else 8}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            Path("dataset/tiny").mkdir(parents=True)
            Path("dataset/tiny/tiny.inter").write_bytes(TINY)
            callbacks = [] if kind == "complete" else [_Stop()]
            folder = run("Mamba4Rec", str(settings.pop("dataset")), settings=settings, callbacks=callbacks).folder
        except Interrupted as interrupt:
            folder = Path(str(interrupt))
        finally:
            os.chdir(before)
        paths = [path for path in Path(directory, folder).iterdir() if not path.name.startswith("events")]
        return {path.name: path.read_bytes() for path in paths}


def _damage(draw: st.DrawFn, text: bytes) -> bytes:
    """The content of a file, cut, longer, with another byte, digit or value, or something else."""
    at, junk = draw(st.integers(0, max(len(text) - 1, 0))), pick(draw, _JUNK)
    digits = [index for index, byte in enumerate(text) if chr(byte).isdigit()] or [at]
    digit, byte, number = pick(draw, digits), draw(st.integers(0, 255)), draw(st.integers(48, 57))
    return bytes(pick(draw, [
        text[:at], text[:at] + bytes([byte]) + text[at + 1 :], text[:at] + junk + text[at:], junk,
        text[:digit] + bytes([number]) + text[digit + 1 :],  # what no parser notices
        _with_value(draw, text, pick(draw, _VALUES)),
    ]))  # fmt: skip


def _with_value(draw: st.DrawFn, text: bytes, value: Any) -> bytes:
    """The content of a JSON or YAML file with another value under one of its keys."""
    try:
        content = json.loads(text)
    except ValueError:
        lines = text.splitlines() or [b""]
        line = draw(st.integers(0, len(lines) - 1))
        lines[line] = lines[line].partition(b":")[0] + b": " + json.dumps(value).encode()
        return b"\n".join(lines)
    if isinstance(content, (dict, list)) and content:
        content[pick(draw, [*content] if isinstance(content, dict) else range(len(content)))] = value
    return json.dumps(content).encode()


@st.composite
def run_directories(draw: st.DrawFn) -> Case:
    """`train --resume` of a run directory with none to three faults."""
    kind = pick(draw, ["interrupted", "complete"])
    content: dict[str, Any] = dict(run_files(kind))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted({*run_files("complete"), *run_files("interrupted")})))
        fault = pick(draw, ["damage", "damage", "damage", "missing", "other", "swapped", "directory", "link"])
        before = content.pop(name, b"")
        if fault == "damage":
            content[name] = _damage(draw, before if isinstance(before, bytes) else b"")
        elif fault == "other":
            content[name] = run_files(pick(draw, ["other", "complete"])).get(name, b"")
        elif fault == "swapped":
            content[name] = draw(st.sampled_from(sorted(run_files(kind).values())))
        elif fault == "directory":
            content[name] = None
        elif fault == "link":
            content[name] = Path(pick(draw, ["nowhere", "/dev/null", ".", name]))
    case = Case(["train", f"--resume={RUN}"], {**{f"{RUN}/{name}": each for name, each in content.items()}, **DATA})
    if draw(st.integers(0, 5)) == 0:
        key = pick(draw, ["epochs", "threads", "seed", "model", "state"])
        return replace(case, argv=[*case.argv, f"--{key}={draw(st.integers(-1, 3))}"])
    as_run = content.get("config.yaml") == run_files(kind)["config.yaml"]  # else the message may be about any setting
    return replace(case, named=(RUN,) if as_run else (), right=content == run_files(kind))
