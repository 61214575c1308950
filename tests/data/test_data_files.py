"""Each malformed file gives its one line: file, line, what is wrong."""

import numpy as np
import pytest

from recbole_sigma.data import atomic
from recbole_sigma.errors import UserError

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
GOOD = "u\ta\t1\nu\tb\t2\nu\tc\t3\n"


def complaint(write_inter, read_tiny, content, **settings):
    file = write_inter([])
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        read_tiny(**settings)
    said = str(error.value)
    assert "\n" not in said
    return said.replace(str(file), "FILE")


MALFORMED = {
    "empty": ("", "FILE:1: the file is empty or begins with an empty line; write a header, as 'user_id:token\\titem_id:"
              "token\\ttimestamp:float'"),
    "no rows": (HEAD, "FILE:2: no data below the header; one line for each interaction is expected"),
    "no types": ("user_id\titem_id\ttimestamp\n" + GOOD,
                 "FILE:1: column 'user_id' has no type; write user_id:TYPE, where TYPE is token, token_seq, float or "
                 "float_seq"),
    "unknown type": (HEAD.replace("float", "date") + GOOD,
                     "FILE:1: column 'timestamp' has the unknown type 'date'; write timestamp:TYPE, where TYPE is "
                     "token, token_seq, float or float_seq"),
    "no user": (HEAD.replace("user_id", "person") + GOOD,
                "FILE:1: no column 'user_id' (setting USER_ID_FIELD); the columns are person, item_id, timestamp"),
    "no item": (HEAD.replace("item_id", "thing") + GOOD,
                "FILE:1: no column 'item_id' (setting ITEM_ID_FIELD); the columns are user_id, thing, timestamp"),
    "no time": ("user_id:token\titem_id:token\nu\ta\n",
                "FILE:1: no column 'timestamp' (setting TIME_FIELD); the columns are user_id, item_id"),
    "column twice": ("user_id:token\titem_id:token\titem_id:token\ttimestamp:float\n",
                     "FILE:1: column 'item_id' appears twice; every column needs a name of its own"),
    "id as number": (HEAD.replace("user_id:token", "user_id:float") + GOOD,
                     "FILE:1: user_id:float has the wrong type (setting USER_ID_FIELD); write user_id:token"),
    "time as token": (HEAD.replace("timestamp:float", "timestamp:token") + GOOD,
                      "FILE:1: timestamp:token has the wrong type (setting TIME_FIELD); write timestamp:float"),
    "word for a time": (HEAD + GOOD + "u\td\tnoon\n", "FILE:5: timestamp:float is 'noon'; a number is expected"),
    "word for a number": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t3\t1\nu\tb\tgood\t2\n",
                          "FILE:3: rating:float is 'good'; a number is expected"),
    "time missing": (HEAD + "u\ta\t1\n\nu\tb\t\nu\tc\t3\n",
                     "FILE:4: timestamp is missing; every interaction needs a finite time"),
    "time infinite": (HEAD + GOOD + "u\td\t-inf\n",
                      "FILE:5: timestamp is -inf; every interaction needs a finite time"),
    "time nan": (HEAD + "u\ta\tnan\n" + GOOD, "FILE:2: timestamp is missing; every interaction needs a finite time"),
    "user missing": (HEAD + GOOD + "\td\t4\n", "FILE:5: user_id is missing; every interaction needs one"),
    "item missing": (HEAD + "u\t\t1\n" + GOOD, "FILE:2: item_id is missing; every interaction needs one"),
    "too few columns": (HEAD + GOOD + "u\td\n", "FILE:5: 2 column(s) in this line, 3 in the header"),
    "too many columns": (HEAD + "u\ta\t1\t1\n" + GOOD, "FILE:2: 4 column(s) in this line, 3 in the header"),
    "other separator": (HEAD + GOOD.replace("\t", ","), "FILE:2: 1 column(s) in this line, 3 in the header"),
    "not UTF-8": ((HEAD + GOOD).encode() + b"u\tcaf\xe9\t4\n",
                  "FILE:5: not UTF-8 (byte 0xe9); convert the file, or set encoding"),
    "header not UTF-8": (b"us\xe9r:token\n", "FILE:1: not UTF-8 (byte 0xe9); convert the file, or set encoding"),
    "binary": (HEAD.encode() + b"u\x00\ta\t1\n", "FILE:2: control character 0x00; a plain text table is expected"),
    "carriage return inside": (HEAD + "u\ta\rb\t1\n", "FILE:2: control character 0x0d; a plain text table is expected"),
    "one-interaction users": (HEAD + "u\ta\t1\nv\tb\t2\nw\tc\t3\n",
                              "FILE: no user has 3 interactions or more (the longest history has 1); one each is "
                              "needed to train, validate and test"),
}  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_gives_one_line(write_inter, read_tiny, content):
    text, expected = content
    assert complaint(write_inter, read_tiny, text) == expected


def test_a_line_is_found_beyond_the_first_block_and_chunk(write_inter, read_tiny, monkeypatch):
    monkeypatch.setattr(atomic, "_BLOCK", 64)
    monkeypatch.setattr(atomic, "_CHUNK", 5)
    rows = "".join(f"user{n % 7}\titem{n}\t{n}\n" for n in range(100))
    assert complaint(write_inter, read_tiny, HEAD + rows + "u\td\tnoon\n").startswith(
        "FILE:102: timestamp:float is 'no"
    )
    assert complaint(write_inter, read_tiny, HEAD + rows + "u\td\n").startswith("FILE:102: 2 column(s) in")
    assert complaint(write_inter, read_tiny, (HEAD + rows).encode() + b"\xff\td\t1").startswith("FILE:102: not UTF-8")


def test_a_file_read_in_small_parts_is_the_same(write_inter, read_tiny, monkeypatch):
    write_inter([(f"user{n % 7}", f"item{n % 11}", n * n % 50) for n in range(100)])
    whole = read_tiny()
    monkeypatch.setattr(atomic, "_BLOCK", 64)
    monkeypatch.setattr(atomic, "_CHUNK", 5)
    parts = read_tiny()
    assert whole.checksum() == parts.checksum()
    for name, column in whole.inter_feat.flat.columns.items():
        assert column.equal(parts.inter_feat.flat.columns[name])
    assert np.array_equal(whole.field2id_token["item_id"], parts.field2id_token["item_id"])


def test_a_missing_file_is_named(tmp_path, read_tiny):
    (tmp_path / "tiny").mkdir()
    with pytest.raises(UserError) as error:
        read_tiny()
    file = tmp_path / "tiny" / "tiny.inter"
    assert str(error.value) == (
        f"{file}: no such file (settings data_path, dataset); dataset/README.md says how to get it"
    )


def test_other_encodings_and_separators_are_read(write_inter, read_tiny):
    file = write_inter([])
    file.write_bytes((HEAD + "u\tcafé\t1\nu\tb\t2\nu\tc\t3\n").replace("\t", ",").encode("latin-1"))
    dataset = read_tiny(encoding="latin-1", field_separator=",")
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "café", "b", "c"]


def test_missing_ratings_are_filled_with_the_mean_as_in_recbole(write_inter, read_tiny):
    rows = [("u", "a", 1, 1), ("u", "b", "", 2), ("u", "c", 4, 3)]
    write_inter(rows, ("user_id:token", "item_id:token", "rating:float", "timestamp:float"))
    assert read_tiny().inter_feat.flat.columns["rating"].tolist() == [1.0, 2.5, 4.0]


def test_titles_with_quotation_marks_and_gaps_are_read(write_inter, read_tiny):
    file = write_inter([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)])
    items = ["item_id:token\ttitle:token_seq\tyear:float", 'a\t"Great" Cats\t1998', "b\t\t1999", 'c\t"Dogs\t']
    file.with_suffix(".item").write_text("\n".join(items) + "\n")
    dataset = read_tiny()
    words = dataset.field2id_token["title"]
    dataset.build()
    titles = dataset.item_feat["title"]
    assert [[str(words[w]) for w in row if w] for row in titles] == [[], ['"Great"', "Cats"], [], ['"Dogs']]
    assert dataset.item_feat["year"].tolist()[1:] == [1998.0, 1999.0, 1998.5]


def test_a_mistake_in_the_item_file_names_it(write_inter, read_tiny):
    file = write_inter([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]).with_suffix(".item")
    file.write_text("item_id:token\tyear:float\na\t1998\nb\tlong ago\n")
    with pytest.raises(UserError) as error:
        read_tiny()
    assert str(error.value) == f"{file}:3: year:float is 'long ago'; a number is expected"
