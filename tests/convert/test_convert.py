"""A file of one's own becomes a data set, or a line that says what is wrong with it."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from recbole.data.dataset import SequentialDataset

from recbole_sigma import cli
from recbole_sigma.convert import Filters, ItemSource, Source, Summary, convert
from recbole_sigma.convert import reader as reader_module
from recbole_sigma.convert.filters import kept_rows
from recbole_sigma.errors import UserError
from tests.helpers.models import refused

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
TABLE = HEAD + "u\ta\t1\nv\tb\t2\n"
RATED = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def made(tmp_path: Path, content: str | bytes, name: str = "raw.csv", **how: Any) -> tuple[str, Summary]:
    """The text of the .inter file that `content` becomes, and the summary."""
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    form = {key: how.pop(key) for key in [*how] if key in Source.__dataclass_fields__}
    summary = convert(Source((file,), **form), tmp_path / "data" / "mine", overwrite=True, **how)
    return (tmp_path / "data" / "mine" / "mine.inter").read_text(encoding="utf-8"), summary


PLAIN = "user,item,time\nu,a,1\nv,b,2\n"
FORMS = {
    "plain": PLAIN,
    "byte order mark": "\ufeff" + PLAIN,
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "CR": PLAIN.replace("\n", "\r"),
    "no last newline": PLAIN.strip(),
    "empty lines": "\n" + PLAIN.replace("\n", "\n\n"),
    "separators at the ends": PLAIN.replace("\n", ",\n"),
    "separators at the ends of rows only": PLAIN.replace("1\n", "1,\n").replace("2\n", "2,\n"),
    "separator at the end of the header": PLAIN.replace("time\n", "time,\n"),
    "quotes": 'user,item,time\n"u","a",1\n"v","b","2"\n',
    "tabs": PLAIN.replace(",", "\t"),
    "semicolons": PLAIN.replace(",", ";"),
    "two colons": PLAIN.replace(",", "::"),
    "bars": PLAIN.replace(",", "|"),
    "other names": PLAIN.replace("user,item,time", "User ID,ASIN,Unix_Review_Time"),
    "another order": "time,item,user\n1,a,u\n2,b,v\n",
    "blanks": PLAIN.replace(",", ", "),
    "no header": "u,a,1\nv,b,2\n",
    "whole numbers with a point": PLAIN.replace("1\n", "1.0\n").replace("2\n", "2.00\n"),
    "exponents": PLAIN.replace("1\n", "1e0\n").replace("2\n", "0.2E+1\n"),
    "an unused column with line breaks": 'user,item,text,time\nu,a,"x\ny, ""z""",1\nv,b,5" tape,2\n',
    "two columns of one name": "user,item,x,x,time\nu,a,1,2,1\nv,b,1,2,2\n",
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_every_form_of_a_table_gives_the_same_file(content: str, tmp_path: Path) -> None:
    assert made(tmp_path, content, strict=True)[0] == TABLE


def test_packed_files_json_lines_and_parquet_give_the_same_file(tmp_path: Path) -> None:
    rows = [{"user": "u", "item": "a", "time": 1}, {"user": "v", "item": "b", "time": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(PLAIN.encode())
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    files = {
        "raw.csv.gz": gzip.compress(PLAIN[:25].encode()) + gzip.compress(PLAIN[25:].encode()),
        "raw.CSV.ZST": packed.getvalue().to_pybytes(),
        "raw.jsonl": lines.encode(),
        "raw.json.gz": gzip.compress(lines.encode()),
        "raw.parquet": table.getvalue(),
        "raw.inter": TABLE.encode(),
    }
    for name, content in files.items():
        assert made(tmp_path, content, name, strict=True)[0] == TABLE, name


TIMES = {  # as written -> in the file
    "seconds": (["978300760", "978300761"], ["978300760", "978300761"]),
    "milliseconds": (["978300760123", "978300760124"], ["978300760123", "978300760124"]),
    "nanoseconds": (["1700000000000000001", "1700000000000000002"], ["1700000000000000001", "1700000000000000002"]),
    "fractions": (["1396867869.277", "1396867869.2771", "5"], ["1396867869277000", "1396867869277100", "5000000"]),
    "before 1970": (["-1.5", "-2", "0.25"], ["-1500", "-2000", "250"]),
    "exponents": (["1.3968678E9", "2e3"], ["1396867800", "2000"]),
    "days": (["2020-01-02", "1970-01-01"], ["1577923200", "0"]),
    "ISO": (["2014-04-07T10:51:09Z", "2014-04-07 12:51:10+02:00"], ["1396867869", "1396867870"]),
    "ISO with digits": (["2014-04-07T10:51:09.277Z", "2014-04-07"], ["1396867869277", "1396828800000"]),
    "ISO to the nanosecond": (["2014-04-07T10:51:09.123456789Z"], ["1396867869123456789"]),
}


@pytest.mark.parametrize(("written", "expected"), TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("block", [1 << 24, 60])
def test_no_digit_of_a_time_is_lost(
    written: list[str], expected: list[str], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BLOCK", block)  # the digits of one block may differ from those of another
    text, _ = made(tmp_path, "user,item,time\n" + "".join(f"u,a,{time}\n" for time in written), strict=True)
    assert text == HEAD + "".join(f"u\ta\t{time}\n" for time in expected)


def test_other_dates_are_read_with_time_format_which_the_refusal_names(tmp_path: Path) -> None:
    for written, form in {"04/07/2014": "%m/%d/%Y", "Apr 07, 2014": "%b %d, %Y", "7.4.2014": "%d.%m.%Y"}.items():
        content = f'user,item,time\nu,a,"{written}"\n'
        assert made(tmp_path, content, time_format=form, strict=True)[0] == HEAD + "u\ta\t1396828800\n"
        for wrong in (None, "%Q"):
            with refused("--time_format", "%m/%d/%Y"):
                made(tmp_path, content, time_format=wrong)


def test_a_json_list_and_a_file_without_a_readable_row_are_refused_for_what_they_are(tmp_path: Path) -> None:
    with refused("raw.jsonl:1", "a list", "one JSON object per line"):
        made(tmp_path, '[\n {"user": 1}\n]', "raw.jsonl")
    with refused("raw.csv", "no interaction"):
        made(tmp_path, "user,item,time\n")


def test_times_and_ids_of_parquet_keep_their_digits(tmp_path: Path) -> None:
    moments = pd.to_datetime(["2014-04-07T10:51:09.277", "2014-04-07T10:51:10"], format="ISO8601")
    file = io.BytesIO()
    pd.DataFrame({"user": [2.0, 3.0], "item": pd.Categorical(["é", "b"]), "time": moments}).to_parquet(file)
    text, _ = made(tmp_path, file.getvalue(), "raw.parquet", strict=True)
    assert text == HEAD + "2\té\t1396867869277\n3\tb\t1396867870000\n"


def test_without_times_the_order_of_the_file_counts_and_is_said(tmp_path: Path) -> None:
    text, summary = made(tmp_path, "user,item\nu,b\nu,a\n")
    assert text == HEAD + "u\tb\t1\nu\ta\t2\n"
    assert any("order of the file" in note for note in summary.notes)
    assert made(tmp_path, PLAIN.replace("1", "9"), time="none")[0] == TABLE


def test_control_characters_and_quotes_in_ids_and_titles_do_not_break_the_files(tmp_path: Path) -> None:
    content = 'user,item,title,time\n"a\tb","""x""","To\ty\n""Story""",1\n"a b","c\r\nd","""Q"" T",2\n'
    (tmp_path / "raw.csv").write_text(content, newline="")
    text, _ = made(tmp_path, content, items=ItemSource((tmp_path / "raw.csv",)))
    assert text == HEAD + 'a␉b\t“x"\t1\na b\tc␊d\t2\n'
    items = (tmp_path / "data" / "mine" / "mine.item").read_text(encoding="utf-8")
    assert items == 'item_id:token\ttitle:token_seq\n“x"\tTo y "Story"\nc␊d\t“Q" T\n'


BAD = PLAIN + "u,c\nu,d,noon\n,e,3\nu,,4\nw,f,5,6\nu,g,\nv,a,7\n"


@pytest.mark.parametrize("block", [1 << 24, 20])
def test_bad_lines_are_counted_and_the_first_are_named(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BLOCK", block)
    text, summary = made(tmp_path, BAD)
    assert text == TABLE + "v\ta\t7\n" and summary.bad_lines == 6
    named = {line.partition(": ")[0].rpartition(":")[2] for line in summary.first_bad}
    assert len(named) == 5 and named <= {"4", "5", "6", "7", "8", "9"}
    with pytest.raises(UserError, match=r"raw\.csv:[4-9]: "):
        made(tmp_path, BAD, strict=True)


def test_the_categories_of_atomic_files_stay_as_they_are(tmp_path: Path) -> None:
    content = "item_id:token\tmovie_title:token_seq\tclass:token_seq\na\tToy Story\tComedy Children's\n"
    (tmp_path / "raw.item").write_text(content)
    made(tmp_path, TABLE, "raw.inter", items=ItemSource((tmp_path / "raw.item",)))
    items = (tmp_path / "data" / "mine" / "mine.item").read_text()
    assert items.split("\n")[1] == "a\tToy Story\tComedy Children's"


def test_bytes_that_are_not_utf8_and_lines_that_are_not_json_cost_one_line(tmp_path: Path) -> None:
    text, summary = made(tmp_path, PLAIN.encode() + b"caf\xe9,a,3\n")
    assert text == TABLE and "raw.csv:4" in summary.first_bad[0] and "UTF-8" in summary.first_bad[0]
    lines = b'{"user": "u", "item": "a", "time": 1}\n[1]\n{"user": "v"\n\n{"user": "v", "item": "b", "time": 2}\n'
    text, summary = made(tmp_path, lines, "raw.jsonl")
    assert text == TABLE and [line.split(":")[1] for line in summary.first_bad] == ["2", "3"]


def test_a_bad_line_does_not_change_the_ids_of_others(tmp_path: Path) -> None:
    lines = '{"user": 1.0, "item": 3.0, "time": 1}\n{"user": 2.0, "item": 4.5, "time": 2}\n'
    for content in (lines, lines + '{"user": 3'):
        text, _ = made(tmp_path, content, "raw.jsonl")
        assert [line.split("\t")[:2] for line in text.splitlines()[1:]] == [["1", "3"], ["2", "4.5"]]


def test_python_literals_are_values_and_never_run(tmp_path: Path) -> None:
    lines = "{u'user': u'u', 'item': 'a', 'time': 1}\n__import__('os').mkdir('hacked')\n"
    lines += "{'user': 'v', 'item': 'b', 'time': 2}\n"
    text, summary = made(tmp_path, lines, "raw.json", python_literals=True)
    assert text == TABLE and summary.bad_lines == 1 and not Path("hacked").exists()


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=60),
    k=st.integers(0, 4),
    keep=st.sampled_from(["keep", "first", "last"]),
)
def test_filters_do_what_their_names_say(rows: list[tuple[int, int, int]], k: int, keep: Any) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    left = [*range(len(rows))]
    if keep != "keep":
        pairs: dict[tuple[int, int], int] = {}
        for row in sorted(left, key=lambda row: rows[row][2], reverse=keep == "first"):
            pairs[rows[row][:2]] = row
        if keep == "first":  # of equal times the first in the file
            pairs = {pair: min(row for row in left if rows[row] == rows[last]) for pair, last in pairs.items()}
        left = sorted(pairs.values())
    while True:
        users, items = (Counter(rows[row][side] for row in left) for side in (0, 1))
        good = [row for row in left if users[rows[row][0]] >= k and items[rows[row][1]] >= k]
        if len(good) == len(left):
            break
        left = good
    got = kept_rows(Filters(k_core=k, duplicates=keep), columns[0], columns[1], columns[2], columns[2])
    assert list(got) == left


def test_ratings_are_kept_and_filter(tmp_path: Path) -> None:
    content = "user,item,rating,time\nu,a,4.5,1\nv,b,3,2\nw,c,,3\n"
    assert made(tmp_path, content)[0] == RATED + "u\ta\t4.5\t1\nv\tb\t3\t2\nw\tc\t\t3\n"
    assert made(tmp_path, content, filters=Filters(min_rating=3.5))[0] == RATED + "u\ta\t4.5\t1\n"


@pytest.fixture
def clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with 6 users of 5 items each, in the directory where the command is called."""
    monkeypatch.chdir(tmp_path)
    rows = [f'u{user},"é {(user + step) % 6}",{100 - step}\n' for step in range(5) for user in range(6)]
    Path("clicks.csv").write_text("user,item,time\n" + "".join(rows), encoding="utf-8")
    return tmp_path / "clicks.csv"


def test_the_result_trains_by_its_name_and_recbole_reads_it(clicks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "clicks.csv", "--out=dataset/mine", "--k_core=5"]) == 0
    shown = capsys.readouterr().out.split()
    assert {"mine", "6", "30", "5.00", "16.67%", "--dataset=mine"} <= {*shown}
    small = ["--epochs=1", "--hidden_size=8", "--MAX_ITEM_LIST_LENGTH=5", "--use_gpu=False"]
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=mine", *small]) == 0

    from recbole_sigma.config.config import Config

    theirs = SequentialDataset(Config("GRU4Rec", "mine"))
    assert {*theirs.field2id_token["item_id"][1:]} == {f"é {item}" for item in range(6)}
    assert theirs.inter_num == 30


def test_a_directory_that_exists_is_replaced_only_if_asked(clicks: Path, refused: Any) -> None:
    convert(Source((clicks,)), Path("dataset/mine"), items=ItemSource((clicks,), title="user"))
    refused("convert", "clicks.csv", "--out=dataset/mine", names=["dataset/mine", "--overwrite"])
    assert cli.main(["convert", "clicks.csv", "--out=dataset/mine", "--overwrite"]) == 0
    assert [path.name for path in Path("dataset/mine").iterdir()] == ["mine.inter"]  # no titles of another file
    assert [path.name for path in Path("dataset").iterdir()] == ["mine"]


WRONG = {  # arguments -> what is named
    "no file": (["nowhere.csv", "--out=d/x"], ["nowhere.csv"]),
    "no source": (["--out=d/x"], ["convert"]),
    "no out": (["clicks.csv"], ["--out"]),
    "a directory": ([".", "--out=d/x"], ["directory"]),
    "unknown ending": (["clicks.xlsx", "--out=d/x"], ["clicks.xlsx", "--kind"]),
    "empty": (["empty.csv", "--out=d/x"], ["empty.csv", "empty"]),
    "only a header": (["header.csv", "--out=d/x"], ["header.csv", "no interaction"]),
    "not Parquet": (["false.parquet", "--out=d/x"], ["false.parquet"]),
    "not gzip": (["false.csv.gz", "--out=d/x"], ["false.csv.gz"]),
    "cut off": (["cut.csv.gz", "--out=d/x"], ["cut.csv.gz"]),
    "an array": (["array.json", "--out=d/x"], ["array.json:1", "object per line"]),
    "no such column": (["clicks.csv", "--out=d/x", "--user=usr"], ["'usr'", "user, item, time", "'user'"]),
    "nothing usual": (["odd.csv", "--out=d/x"], ["odd.csv", "--user", "p, q"]),
    "one column twice": (["clicks.csv", "--out=d/x", "--user=item"], ["item", "twice"]),
    "a time that is none": (["clicks.csv", "--out=d/x", "--time=item", "--item=time"], ["clicks.csv:2"]),
    "two columns of items": (["twice.csv", "--out=d/x"], ["twice.csv", "--item=NAME", "item, item.3"]),
    "a list as an item": (["list.jsonl", "--out=d/x"], ["list.jsonl:1", "a list"]),
    "no ratings": (["clicks.csv", "--out=d/x", "--min_rating=3"], ["--min_rating", "--rating"]),
    "a core of nothing": (["clicks.csv", "--out=d/x", "--k_core=50"], ["k_core=50"]),
    "a negative core": (["clicks.csv", "--out=d/x", "--k_core=-1"], ["--k_core", "-1"]),
    "a word as a core": (["clicks.csv", "--out=d/x", "--k_core=five"], ["k_core", "five"]),
    "an endless rating": (["clicks.csv", "--out=d/x", "--min_rating=nan"], ["--min_rating"]),
    "a file as out": (["clicks.csv", "--out=odd.csv"], ["odd.csv", "directory"]),
    "below a file": (["clicks.csv", "--out=odd.csv/x"], ["odd.csv"]),
    "a file's name as out": (["clicks.csv", "--out=d/x.inter"], ["d/x"]),
    "source is output": (["x/x.inter", "--out=x", "--overwrite"], ["x/x.inter", "same file"]),
    "an unknown option": (["clicks.csv", "--out=d/x", "--users=u"], ["--users"]),
    "no titles": (["clicks.csv", "--out=d/x", "--items=clicks.csv"], ["--title"]),
    "no such titles": (["clicks.csv", "--out=d/x", "--title=name"], ["clicks.csv", "'name'"]),
    "items without a file": (["clicks.csv", "--out=d/x", "--item_id=item"], ["--items"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], named: list[str], clicks: Path, refused: Any
) -> None:
    contents = {
        "empty.csv": b"", "header.csv": b"user,item\n", "false.parquet": b"user,item\n", "odd.csv": b"p,q\n1,2\n",
        "array.json": b'[{"user": 1}]\n', "twice.csv": b"user,item,item\nu,a,b\n",
        "list.jsonl": b'{"user": 1, "item": ["a"]}\n', "clicks.xlsx": b"PK", "false.csv.gz": b"user,item\nu,a\n",
        "cut.csv.gz": gzip.compress(PLAIN.encode() * 99)[:-20],
    }  # fmt: skip
    for name, content in contents.items():
        Path(name).write_bytes(content)
    Path("x").mkdir()
    Path("x/x.inter").write_text(TABLE)
    refused("convert", *arguments, names=named)
    left = [path.name for folder in Path().glob("**/") for path in folder.glob(".*.part")]
    assert left == [] and not Path("d", "x").exists()


def test_titles_may_stand_beside_the_interactions(tmp_path: Path):
    source = tmp_path / "r.csv"
    source.write_text('user,product,time,name\nu,a,1,"A, B"\nu,b,2,C\nv,a,3,"A, B"\n')
    given = ["--user=user", "--item=product", "--title=name"]
    assert cli.main(["convert", str(source), f"--out={tmp_path / 'made'}", *given]) == 0
    assert (tmp_path / "made" / "made.item").read_text() == "item_id:token\ttitle:token_seq\na\tA, B\nb\tC\n"
