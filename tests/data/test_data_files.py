"""Each malformed file gives one line that names the file, the line, what is wrong and what would be right."""

import numpy as np
import pytest

from recbole_sigma.data import atomic
from recbole_sigma.data.item_info import titles_of
from recbole_sigma.errors import UserError
from tests.helpers.models import refused

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
GOOD = "u\ta\t1\nu\tb\t2\nu\tc\t3\n"


def complaint(write_inter, read_tiny, content, extension=".inter"):
    """What the reader says, with FILE for the path of the file `content`."""
    file = write_inter([row.split("\t") for row in GOOD.splitlines()]).with_suffix(extension)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    settings = {} if extension == ".inter" else {"load_col": {"inter": "*", extension[1:]: "*"}}
    said = []
    for in_memory in ({}, {"memory_map_above": 0}):
        with pytest.raises(UserError) as error:
            read_tiny(**settings, **in_memory)
        said.append(str(error.value).replace(str(file), "FILE"))
    assert "\n" not in said[0] and said[1] == said[0]
    return said[0]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Columns of files above `memory_map_above` are kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


MALFORMED = {  # content, line, what is named
    "empty": ("", 1, ["empty", "user_id:token"]),
    "an empty line first": ("\n" + HEAD + GOOD, 1, ["empty", "user_id:token"]),
    "no rows": (HEAD, 2, ["no data"]),
    "only empty rows": (HEAD + "\n\n", 2, ["no data"]),
    "no types": ("user_id\titem_id\ttimestamp\n" + GOOD, 1, ["'user_id'", "user_id:TYPE", "token_seq", "float_seq"]),
    "unknown type": (HEAD.replace("float", "date") + GOOD, 1, ["'timestamp'", "'date'", "float"]),
    "other separator": (HEAD.replace("\t", "|") + GOOD, 1, ["'user_id'", "tabs or commas"]),
    "no user": (HEAD.replace("user_id", "person") + GOOD, 1, ["'user_id'", "USER_ID_FIELD", "person"]),
    "no item": (HEAD.replace("item_id", "thing") + GOOD, 1, ["'item_id'", "ITEM_ID_FIELD", "thing"]),
    "no time": ("user_id:token\titem_id:token\nu\ta\n", 1, ["'timestamp'", "TIME_FIELD", "user_id, item_id"]),
    "column twice": (HEAD.replace("user_id", "item_id") + GOOD, 1, ["'item_id'", "twice"]),
    "id as number": (HEAD.replace("user_id:token", "user_id:float") + GOOD, 1, ["user_id:float", "user_id:token"]),
    "time as token": (HEAD.replace("float", "token") + GOOD, 1, ["timestamp:token", "timestamp:float"]),
    "word for a time": (HEAD + GOOD + "u\td\tnoon\n", 5, ["timestamp:float", "'noon'", "number"]),
    "word for a number": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t3\t1\nu\tb\tgood\t2\n",
                          3, ["rating:float", "'good'", "number"]),
    "word in a sequence": (HEAD.strip() + "\tx:float_seq\nu\ta\t1\t1 2\nu\ta\t1\t1 b\n", 3, ["x:float_seq", "b"]),
    "digits that are not ASCII": (HEAD + GOOD + "u\td\t١٢\n", 5, ["timestamp:float", "'١٢'", "number"]),
    "time missing": (HEAD + "u\ta\t1\n\nu\tb\t\nu\tc\t3\n", 4, ["timestamp", "missing"]),
    "time infinite": (HEAD + GOOD + "u\td\t-inf\n", 5, ["timestamp", "-inf", "finite"]),
    "time nan": (HEAD + "u\ta\tnan\n" + GOOD, 2, ["timestamp", "missing"]),
    "user missing": (HEAD + GOOD + "\td\t4\n", 5, ["user_id", "missing"]),
    "item missing": (HEAD + "u\t\t1\n" + GOOD, 2, ["item_id", "missing"]),
    "too few columns": (HEAD + "\r\n" + GOOD + "u\td\n", 6, ["2", "3"]),
    "too many columns": (HEAD + "u\ta\t1\t1\n" + GOOD, 2, ["4", "3"]),
    "commas below tabs": (HEAD + GOOD.replace("\t", ","), 2, ["1", "3"]),
    "not UTF-8": ((HEAD + GOOD).encode() + b"u\tcaf\xe9\t4\n", 5, ["UTF-8", "0xe9"]),
    "header not UTF-8": (b"us\xe9r:token\n", 1, ["UTF-8", "0xe9"]),
    "binary": (HEAD.encode() + b"u\x00\ta\t1\n", 2, ["NUL"]),
    "carriage return inside": (HEAD + "u\ta\rb\t1\n", 2, ["2", "3"]),
    "users of one interaction": (HEAD + "u\ta\t1\nv\tb\t2\nw\tc\t3\n", None, ["3 or more", "has 1"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "line", "named"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_gives_one_line(write_inter, read_tiny, content, line, named):
    said = complaint(write_inter, read_tiny, content)
    assert said.startswith(f"FILE:{line}: " if line else "FILE: ")
    assert all(name in said for name in named), said


def test_a_line_is_found_beyond_the_first_block(write_inter, read_tiny, monkeypatch):
    monkeypatch.setattr(atomic, "_BLOCK", 64)
    rows = HEAD + "".join(f"user{n % 7}\titem{n}\t{n}\n" for n in range(100))
    assert complaint(write_inter, read_tiny, rows + "u\td\tnoon\n").startswith("FILE:102: timestamp:float is 'noon'")
    assert complaint(write_inter, read_tiny, rows + "u\td\n").startswith("FILE:102: 2 column(s)")
    assert complaint(write_inter, read_tiny, rows.encode() + b"\xff\td\t1").startswith("FILE:102: not UTF-8")
    assert complaint(write_inter, read_tiny, rows + "z" * 300).startswith("FILE: cannot be read (a line has")


def test_a_file_read_in_small_blocks_is_the_same(write_inter, read_tiny, monkeypatch):
    write_inter([(f"user{n % 7}", f"item{n % 11}", n * n % 50) for n in range(100)])
    at_once = read_tiny()
    monkeypatch.setattr(atomic, "_BLOCK", 64)
    in_blocks = read_tiny()
    assert at_once.checksum() == in_blocks.checksum()
    for name, column in at_once.inter_feat.flat.columns.items():
        assert column.equal(in_blocks.inter_feat.flat.columns[name])
    assert np.array_equal(at_once.field2id_token["item_id"], in_blocks.field2id_token["item_id"])


def test_a_missing_file_is_named(tmp_path, read_tiny):
    (tmp_path / "tiny").mkdir()
    with refused(f"{tmp_path / 'tiny' / 'tiny.inter'}: ", "data_path"):
        read_tiny()


def test_columns_may_be_separated_by_commas(write_inter, read_tiny):
    write_inter([]).write_text((HEAD + "u\tcafé\t1\nu\tb\t2\nu\tc\t3\n").replace("\t", ","), encoding="utf-8")
    assert read_tiny().field2id_token["item_id"].tolist() == ["[PAD]", "café", "b", "c"]


def test_missing_ratings_are_filled_with_the_mean_as_in_recbole(write_inter, read_tiny):
    rows = [("u", "a", 1, 1), ("u", "b", "", 2), ("u", "c", 4, 3), ("u", "d", "NA", 4)]
    write_inter(rows, ("user_id:token", "item_id:token", "rating:float", "timestamp:float"))
    assert read_tiny().inter_feat.flat.columns["rating"].tolist() == [1.0, 2.5, 4.0, 2.5]


def test_an_empty_token_is_missing_and_na_is_a_token(write_inter, read_tiny):
    rows = [("u", "a", "NA", 1), ("u", "b", "", 2), ("u", "c", "x", 3)]
    write_inter(rows, ("user_id:token", "item_id:token", "kind:token", "timestamp:float"))
    dataset = read_tiny()
    assert dataset.field2id_token["kind"].tolist() == ["[PAD]", "NA", "x"]
    assert dataset.inter_feat.flat.columns["kind"].tolist() == [1, 0, 2]


def test_titles_with_quotation_marks_and_gaps_are_read(write_inter, read_tiny):
    file = write_inter([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)])
    items = ["item_id:token\ttitle:token_seq\tyear:float", 'a\t"Great" Cats\t1998', "b\t\t1999", 'c\t"Dogs\t']
    file.with_suffix(".item").write_text("\n".join(items) + "\n")
    dataset = read_tiny(load_col={"inter": "*", "item": "*"})
    words = dataset.field2id_token["title"]
    dataset.build()
    titles = dataset.item_feat["title"]
    assert [[str(words[w]) for w in row if w] for row in titles] == [[], ['"Great"', "Cats"], [], ['"Dogs']]
    assert dataset.item_feat["year"].tolist()[1:] == [1998.0, 1999.0, 1998.5]
    file.with_suffix(".item").write_text("\n".join([*items, "a\tAnother\t"]) + "\n")
    assert titles_of(dataset) == {"a": '"Great" Cats', "c": '"Dogs'}


def test_a_mistake_in_the_item_file_names_it(write_inter, read_tiny):
    said = complaint(write_inter, read_tiny, "item_id:token\tyear:float\na\t1998\nb\tlong ago\n", ".item")
    assert said.startswith("FILE:3: ") and "year:float" in said and "'long ago'" in said
