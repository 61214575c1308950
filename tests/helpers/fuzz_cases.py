"""Hypothesis strategies for command lines, settings and data files, right and broken: what `fuzz.py` runs.

A `Case` is what a user had on disk and typed. Everything in it is plain, so that a failing one can be printed and
replayed.
"""

import base64
import json
import math
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import recbole as recbole_package
import yaml
from hypothesis import strategies as st
from recbole.utils import dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from tests.helpers.fuzz_words import BYTES, CODE, HEADERS, MORE_KEYS, NAMES, NUMBERS, TOKENS, WORDS, YAML_FAULTS

MODELS = {
    "Mamba4Rec": {"hidden_size": 8, "d_state": 2},
    "SIGMA": {"hidden_size": 8, "d_state": 2},
    "ECHO": {"hidden_size": 8, "d_state": 2},
    "RecMamba": {"hidden_size": 8, "d_state": 2},
    "LinRec": {"hidden_size": 8, "dropout_prob": 0.1},
    "GRU4Rec": {"hidden_size": 8, "embedding_size": 8},
    "SASRec": {"hidden_size": 8, "inner_size": 8, "hidden_dropout_prob": 0.1},
    "BERT4Rec": {"hidden_size": 8, "inner_size": 8, "hidden_dropout_prob": 0.1},
    "FEARec": {"hidden_size": 8, "inner_size": 8, "hidden_dropout_prob": 0.1},
}
SMALL = {
    "dataset": "tiny", "epochs": 1, "threads": 1, "use_gpu": False, "show_progress": False, "state": "WARNING",
    "MAX_ITEM_LIST_LENGTH": 6,  # FEARec needs an even one
}  # fmt: skip
# Right values of these are legitimately slow, or start processes and threads: more of them is what the user asked for.
# A case draws wrong ones freely and right ones up to here. `epochs` is always small: any number of them is right.
MODERATE = {"epochs": 2, "threads": 2, "worker": 0, "nproc": 1, "world_size": 1, "n_layers": 2, "num_layers": 2}
MODERATE |= dict.fromkeys(("hidden_size", "embedding_size", "inner_size", "d_state", "d_conv", "expand"), 64)
# What no machine has: a larger number must be refused, and is not made moderate.
TOO_MUCH = dict.fromkeys(("threads", "worker", "nproc", "n_layers", "num_layers"), 1024)
TOO_MUCH |= dict.fromkeys(("hidden_size", "embedding_size", "inner_size", "d_state", "d_conv", "expand"), 10**8)


@dataclass(frozen=True)
class Case:
    """`argv` for `recbole-sigma`, in a folder with `files` (text in Latin-1: a character is a byte)."""

    kind: str
    argv: list[str]
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)  # name -> target
    named: list[str] = field(default_factory=list)  # one of these must stand in the message of a refusal
    right: bool = False  # nothing is wrong with it: must not be refused

    def packed(self) -> str:
        """For `fuzz.py --replay`."""
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(asdict(self)).encode())).decode()

    @staticmethod
    def unpacked(text: str) -> "Case":
        """The case that `packed` gave."""
        return Case(**json.loads(zlib.decompress(base64.urlsafe_b64decode(text))))


# --- tables


HEADER = ["user_id:token", "item_id:token", "timestamp:float"]
cell = st.sampled_from(NUMBERS) | st.sampled_from(TOKENS) | st.text(max_size=4) | st.integers().map(str)


@st.composite
def interactions(draw: st.DrawFn) -> list[list[str]]:
    """Rows of user, item, time: some users, some with one or two interactions, repeated pairs, equal times."""
    random = draw(st.randoms(use_true_random=False))
    n_items = draw(st.sampled_from([1, 2, 5, 15, 15]))
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=12))
    whole = draw(st.booleans())
    rows = []
    for user, length in enumerate(lengths):
        for _ in range(length):
            time = random.randrange(20) if whole else random.random() * 1e9
            rows.append([f"u{user}", f"i{random.randrange(n_items)}", str(time)])
    random.shuffle(rows)
    return rows


def _broken_cell(draw: st.DrawFn, table: list[list[str]]) -> None:
    row = draw(st.sampled_from(table))
    if row:
        row[draw(st.integers(0, len(row) - 1))] = draw(cell)


def _whole_column(draw: st.DrawFn, table: list[list[str]]) -> None:
    column, value = draw(st.integers(0, 2)), draw(cell)
    for row in table[1:]:
        if column < len(row):
            row[column] = value


def _ragged(draw: st.DrawFn, table: list[list[str]]) -> None:
    row = draw(st.sampled_from(table))
    if draw(st.booleans()) and row:
        del row[draw(st.integers(0, len(row) - 1))]
    else:
        row.insert(draw(st.integers(0, len(row))), draw(cell))


def _broken_header(draw: st.DrawFn, table: list[list[str]]) -> None:
    table[0] = list(table[0]) or [""]
    table[0][draw(st.integers(0, len(table[0]) - 1))] = draw(st.sampled_from(HEADERS) | st.text(max_size=5))


def _more_columns(draw: st.DrawFn, table: list[list[str]]) -> None:
    kind = draw(st.sampled_from(["token", "float", "token_seq", "float_seq"]))
    name = draw(st.sampled_from(["rating", "class", "label", "item_id_list", "item_length", "neg_item_id", "user_id"]))
    values = draw(st.lists(cell, min_size=1, max_size=4))
    for number, row in enumerate(table):
        row.append(f"{name}:{kind}" if number == 0 else values[number % len(values)])


def _rows(draw: st.DrawFn, table: list[list[str]]) -> None:
    change = draw(st.sampled_from(["none", "blank", "one", "twice", "no header", "header twice", "reversed"]))
    rows = table[1:]
    table[1:] = {
        "none": [], "blank": [[], *rows, [], []], "one": rows[:1], "twice": rows + [list(row) for row in rows],
        "header twice": [list(table[0]), *rows], "reversed": rows[::-1], "no header": rows,
    }[change]  # fmt: skip
    if change == "no header" and rows:
        del table[0]


def _bytes(draw: st.DrawFn, text: bytes) -> bytes:
    at = draw(st.integers(0, max(len(text) - 1, 0)))
    return {
        "bom": b"\xef\xbb\xbf" + text, "crlf": text.replace(b"\n", b"\r\n"), "cr": text.replace(b"\n", b"\r"),
        "nul": text[:at] + b"\0" + text[at:], "not utf-8": text[:at] + b"\xff" + text[at:], "cut": text[:at],
        "utf-16": text.decode("utf-8", "replace").encode("utf-16"), "empty": b"",
        "newline": b"\n" + text, "zlib": zlib.compress(text),
        "commas": text.replace(b"\t", b","), "no end": text.rstrip(b"\n"), "spaces": text.replace(b"\t", b"  "),
        "any": draw(st.binary(max_size=60)), "control": text[:at] + bytes([draw(st.integers(1, 31))]) + text[at:],
        "surrogate": text[:at] + b"\xed\xa0\x80" + text[at:], "huge line": text + b"z" * 2_000_000,
    }[draw(st.sampled_from(BYTES))]  # fmt: skip


TABLE_FAULTS = [_broken_cell, _broken_cell, _whole_column, _ragged, _broken_header, _more_columns, _rows]


def _encoded(table: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in table).encode("utf-8", "surrogatepass")


@st.composite
def side_table(draw: st.DrawFn, id_name: str, prefix: str) -> list[list[str]]:
    """A .user or .item file's rows: right ones, or with a fault or two."""
    titles = [f"{id_name}:token", "class:token_seq", "price:float", "vector:float_seq"]
    n_rows = draw(st.sampled_from([0, 3, 15, 15]))
    rows = [[f"{prefix}{n}", f"a{n % 3} b", str(n / 2), f"{n} 0.5"] for n in range(n_rows)]
    table = [titles, *rows]
    for fault in draw(st.lists(st.sampled_from(TABLE_FAULTS), max_size=2)):
        fault(draw, table)
    return table


DATA_SETTINGS: dict[str, list[Any]] = {
    "time_order": ["exact", "recbole"],
    "rm_dup_inter": ["first", "last"],
    "normalize_all": [True],
    "normalize_field": [["timestamp"], ["rating"], ["price"]],
    "load_col": [
        {"inter": ["user_id", "item_id", "timestamp"]}, {"inter": ["user_id", "item_id", "timestamp"], "item": "*"},
        {"inter": "*", "user": ["user_id", "class"]}, {"inter": ["user_id"]},
    ],
    "val_interval": [{"timestamp": "[0,10]"}, {"price": "[1,inf)"}, {"item_id": ["i1", "i2"]}, {"class": ["a1"]}],
    "user_inter_num_interval": ["[3,inf)", "[1,5]"],
    "item_inter_num_interval": ["[2,inf)"],
    "filter_inter_by_user_or_item": [False],
    "field_separator": [",", " ", "\t", "|", "\n"],
    "encoding": ["latin-1", "utf-16", "utf-8-sig", "cp037", "shift_jis"],
    "seq_len": [{"class": 1}, {"vector": 1}],
    "seq_separator": [",", " "],
    "threshold": [{"timestamp": 5}, {"rating": 1}],
    "unused_col": [{"inter": ["timestamp"]}],
    "numerical_features": [["price"], ["timestamp"]],
    "alias_of_item_id": [["class"]],
    "loss_type": ["BPR"],
    "train_mode": ["sequence"],
    "by_length": [False],
    "MAX_ITEM_LIST_LENGTH": [1, 2, 4, 50],
}  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> Case:
    """Atomic files: right ones, and ones with up to three faults, read under a few settings."""
    table = [list(HEADER), *draw(interactions())]
    faults = draw(st.lists(st.sampled_from(TABLE_FAULTS), max_size=2))
    for fault in faults:
        fault(draw, table)
    text, how = _encoded(table), draw(st.sampled_from(["plain"] * 3 + ["bytes"]))
    if how == "bytes":
        text = _bytes(draw, text)
    model = draw(st.sampled_from([*MODELS, *["Mamba4Rec"] * 6]))
    keys = draw(st.lists(st.sampled_from(list(DATA_SETTINGS)), max_size=2, unique=True))
    settings = {key: draw(st.sampled_from(DATA_SETTINGS[key])) for key in keys}
    case = Case(
        "files",
        ["train", f"--model={model}", "--config_files=base.yaml" + (",drawn.yaml" if settings else "")],
        {"base.yaml": yaml.safe_dump(SMALL | MODELS[model]), "drawn.yaml": yaml.safe_dump(settings)},
        named=["tiny", "drawn.yaml", "train_neg_sample_args", "transform", "_col", "_interval", "seq_len", *keys],
        right=not faults and how == "plain" and not settings and _is_enough(table[1:], model),
    )
    side = draw(st.sampled_from(["", "", "user", "item"]))
    if side:
        rows = draw(side_table(f"{side}_id", side[0]))
        case.files[f"dataset/tiny/tiny.{side}"] = _encoded(rows).decode("latin-1")
    _place(draw, case, text.decode("latin-1"), "dataset/tiny/tiny.inter")
    return case if not side and case.files.get("dataset/tiny/tiny.inter") else Case(**{**asdict(case), "right": False})


def _place(draw: st.DrawFn, case: Case, text: str, name: str) -> None:
    """The file where it belongs, or now and then something else there."""
    how = draw(st.sampled_from(["file"] * 30 + ["missing", "folder", "link", "dangling", "loop"]))
    if how == "file":
        case.files[name] = text
    elif how == "folder":
        case.folders.append(name)
    else:
        case.folders.append("dataset/tiny")
        if how == "link":
            case.files["elsewhere"] = text
        if how != "missing":
            target = {"link": "../../elsewhere", "dangling": "nowhere", "loop": "tiny.inter"}[how]
            case.links[name] = target


def _is_enough(rows: list[list[str]], model: str) -> bool:
    """Whether there is something to train, validate and test on."""
    users = [user for user, *_ in rows]
    items_left = model != "BERT4Rec" or len({item for _, item, _ in rows}) > SMALL["MAX_ITEM_LIST_LENGTH"]
    return items_left and any(users.count(user) >= 4 for user in users)


# --- settings


KEYS = sorted(
    {*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments, *DATA_SETTINGS, *SMALL}
    | {key for own in MODELS.values() for key in own}
    | set(MORE_KEYS)
)
number = st.sampled_from([0, 1, 2, 3, -1, 5, 10, 64, 1000, 10**6, 10**9, 10**18, -(10**18), 2**31, 2**63, 10**40]) | (
    st.sampled_from([0.0, 0.5, 1.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 1.5, 1e18])
)
word = st.sampled_from(NAMES) | st.text(max_size=6) | st.sampled_from(TOKENS[:-1]) | st.sampled_from(CODE)
scalar = st.none() | st.booleans() | number | word | st.dates().map(str)
value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(word | number | st.booleans(), inner, max_size=3),
    max_leaves=6,
)


def _moderate(key: str, given: Any) -> Any:
    """See MODERATE."""
    limit = MODERATE.get(key)
    if limit is None or isinstance(given, bool) or not isinstance(given, (int, float)) or given <= limit:
        return given
    return limit if given <= TOO_MUCH.get(key, math.inf) else given


def _defaults() -> dict[str, Any]:
    """Every setting that has a default, RecBole's and ours."""
    ours, recbole = Path(__file__).parents[2] / "properties", Path(recbole_package.__file__).parent / "properties"
    files = [recbole / "overall.yaml", recbole / "dataset" / "sample.yaml", ours / "overall.yaml"]
    files += [ours / "model" / f"{model}.yaml" for model in MODELS]
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


DEFAULTS = _defaults()


def _of_the_right_kind(key: str) -> st.SearchStrategy[Any]:
    default = DEFAULTS.get(key)
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, (int, float)):
        return st.sampled_from([default, 1, 2, 3, 4, 0, 0.5, 1.0, 0.1, 7, 10**5, 10**7, 10**9, 2**31 - 1, 1e-300, 1e30])
    if isinstance(default, dict):
        return st.dictionaries(st.sampled_from([*default, *NAMES]), scalar | st.just({"LS": "valid_only"}), max_size=2)
    return st.sampled_from(NAMES) | st.lists(st.sampled_from(NAMES), max_size=3)


@st.composite
def one_setting(draw: st.DrawFn) -> tuple[str, Any]:
    """A known name, now and then misspelt, and any value: likely of the right kind for some."""
    key = draw(st.sampled_from(KEYS))
    if draw(st.integers(0, 19)) == 0:
        key = draw(st.sampled_from([key.lower(), key.upper(), key[:-1], f"{key}s", f" {key}", "", f"{key}.x"]) | word)
    if key in DATA_SETTINGS and draw(st.booleans()):
        return key, draw(st.sampled_from(DATA_SETTINGS[key]))
    if draw(st.integers(0, 2)):
        return key, _moderate(key, draw(_of_the_right_kind(key)))
    return key, _moderate(key, draw(value))


def tiny_inter() -> str:
    rows = [[f"u{n % 12}", f"i{(n * 7) % 13}", str(n)] for n in range(60)]
    return _encoded([HEADER, *rows]).decode("latin-1")


@st.composite
def settings(draw: st.DrawFn) -> Case:
    """One to three settings with any value, given on the command line or in a file, in any style of YAML."""
    model = draw(st.sampled_from([*MODELS, *["Mamba4Rec"] * 4, "SIGMA", "SIGMA"]))
    given = dict(draw(st.lists(one_setting(), min_size=1, max_size=3)))
    argv = ["train", "--config_files=base.yaml"]
    files = {"base.yaml": yaml.safe_dump({**SMALL, **MODELS[model], "model": model})}
    files["dataset/tiny/tiny.inter"] = tiny_inter()
    how = draw(st.sampled_from(["arguments", "arguments", "file", "file", "broken file"]))
    if how == "arguments":
        argv += [f"--{key}={draw(_as_argument(given[key]))}" for key in given]
    else:
        argv[1] += ",drawn.yaml"
        text = yaml.dump(given, default_flow_style=draw(st.sampled_from([None, True, False])), allow_unicode=True)
        if how == "broken file":
            text = draw(st.sampled_from(YAML_FAULTS)) + draw(st.sampled_from(["", text]))
        files["drawn.yaml"] = text.encode("utf-8", "replace").decode("latin-1")
    keys = [part for key in map(str, given) for part in (key, key.partition("=")[0], key[:50], repr(key)[1:-1])]
    return Case("settings", argv, files, named=[*keys, "drawn.yaml", "tiny.inter", "learning_rate", "--"])


def _as_argument(given: Any) -> st.SearchStrategy[str]:
    flow = yaml.dump(given, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("...\n").strip("\n")
    return st.sampled_from([flow, flow, str(given)]) if flow.isprintable() else st.just(repr(given))


# --- command lines


SMALL_ARGV = ["--dataset=tiny", "--epochs=1"]  # the default would be an hour of training
argument = (
    st.sampled_from(WORDS)
    | st.text(max_size=8).filter(lambda text: "\0" not in text)
    | st.builds("--{}={}".format, st.sampled_from(KEYS) | st.text(max_size=5), st.text(max_size=8)).filter(
        lambda text: "\0" not in text
    )
)


@st.composite
def commands(draw: st.DrawFn) -> Case:
    """Any arguments. A `train` that would be right is made small by base.yaml, which stands first."""
    argv = draw(st.lists(argument, max_size=5))
    first = draw(st.sampled_from(["train", "train", "train", "models", "models", ""]))
    argv = [_modest_argument(each) for each in ([first, *argv] if first else argv)]
    if argv[:1] == ["train"] and not any(each.startswith("--config_files=") and "base.yaml" in each for each in argv):
        small = ["--config_files=base.yaml"] if not any("--config_files" in each for each in argv) else SMALL_ARGV
        argv[1:1] = [each for each in small if each.partition("=")[0] not in "\n".join(argv)]
    files = {"base.yaml": yaml.safe_dump(SMALL), "dataset/tiny/tiny.inter": tiny_inter()}
    return Case("commands", argv, files)


def _modest_argument(text: str) -> str:
    key, _, given = text.removeprefix("--").partition("=")
    return "--epochs=2" if key in MODERATE and given.strip().isdecimal() and int(given[:9]) > 2 else text
