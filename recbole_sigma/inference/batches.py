"""Recommendations for a file of histories, part by part: bounded memory, and a killed process resumes.

A part is PART_ROWS histories. Its answers are a file of their own in a hidden directory beside the output, complete or
missing; the last step joins them. Whoever computes a part, this process or a worker of Ray, computes the same.
"""

import csv
import io
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_sigma.config.values import command_line
from recbole_sigma.errors import Interrupted, UserError, one_line
from recbole_sigma.inference.recommender import OnUnknown, Recommender
from recbole_sigma.runs.files import json_text, locked, read_json, write_file, write_text

PART_ROWS = 4096  # histories answered together
KINDS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}

logger = logging.getLogger(__name__)
_COLUMNS = pa.schema(
    {"user_id": pa.string(), "item_id": pa.string(), "score": pa.float32(), "rank": pa.int32(), "title": pa.string()}
)
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what surrogateescape makes of such bytes; JSON can write it, too
Row = tuple[Any, list[Any]]  # a user and the items of the history
Answer = tuple[int, bytes, int, int]  # number of the part, its content, unknown item ids, histories with popular items
Engine = Callable[[Iterable[tuple[int, list[Row]]]], Iterator[Answer]]


@dataclass(frozen=True)
class Request:
    """What is asked of each history; `kind` is that of the output."""

    kind: str
    k: int = 10
    exclude_seen: bool = True
    candidates: tuple[str, ...] | None = None
    on_unknown: OnUnknown = "skip"


def recommend_file(recommender: Recommender, source: Path, output: Path, request: Request, engine: Engine) -> str:
    """Answer the histories of `source` in `output` and say how many; resumes what the same request started.

    Raises UserError for a file that cannot be read, naming the line, and Interrupted for Ctrl-C.
    """
    file = source.stat()
    asked: dict[str, Any] = {
        "input": [str(source.absolute()), file.st_size, file.st_mtime_ns],
        "model": recommender.checksum,
    }
    asked |= {**asdict(request), "candidates": [*request.candidates] if request.candidates is not None else None}
    parts = output.with_name(f".{output.name}.parts")
    try:
        parts.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from None
    with locked(parts, wait=False) as held:
        if not held:
            raise UserError(f"{parts}: another process writes {output.name}; wait for it, or stop it")
        request_file = parts / "request.json"
        if not request_file.exists() or read_json(request_file, dict) != asked:
            for each in parts.iterdir():
                each.unlink()
            write_text(request_file, json_text(asked))
        try:
            _answer_all(source, parts, engine)
            done = sorted(parts.glob("[!.]*.part"))
            _join(done, output, request.kind, bool(recommender.titles))
        except KeyboardInterrupt:
            raise Interrupted(parts, command_line()) from None
        except UserError:
            if not any(parts.glob("[!.]*.part")):
                shutil.rmtree(parts)
            raise
        counts = [[int(number) for number in part.stem.split("-")[1:]] for part in done]
        histories, unknown, popular = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 0)
        shutil.rmtree(parts)
    notes = [f"{unknown} unknown item ids skipped"] * bool(unknown) + [f"{popular} have popular items"] * bool(popular)
    return f"{histories} histories" + "".join(f", {note}" for note in notes)


def answer(recommender: Recommender, request: Request, number: int, rows: list[Row]) -> Answer:
    """Answer one part."""
    lists = recommender.recommend(
        [items for _, items in rows], request.k, request.exclude_seen, request.candidates, request.on_unknown
    )
    users, titles = [user for user, _ in rows], recommender.titles
    content = io.BytesIO()
    if request.kind == "jsonl":
        for user, best in zip(users, lists, strict=True):
            line = {"user_id": user, "items": [item for item, _ in best], "scores": [score for _, score in best]}
            if titles:
                line["titles"] = [titles.get(item) for item, _ in best]
            content.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    else:
        table = [
            (str(user), item, score, rank, titles.get(item))
            for user, best in zip(users, lists, strict=True)
            for rank, (item, score) in enumerate(best, 1)
        ]
        schema = _columns(bool(titles))
        if request.kind == "csv":
            text = io.TextIOWrapper(content, encoding="utf-8", newline="", write_through=True)
            csv.writer(text, lineterminator="\n").writerows(row[: len(schema)] for row in table)
            text.detach()
        else:
            columns = [*zip(*table, strict=True)] if table else [()] * 5
            pq.write_table(pa.table(columns[: len(schema)], schema), content)
    return number, content.getvalue(), lists.unknown, len(lists.popular)


def _columns(titles: bool) -> pa.Schema:
    """Of an output with a row per recommended item; `title` is one of them where the run has `titles`."""
    return _COLUMNS if titles else _COLUMNS.remove(4)


def read_histories(path: Path) -> Iterator[Row]:
    """User and items of each row: JSON lines, CSV or Parquet with the columns user_id (optional) and history.

    A history is a list, or text with blanks between the ids. Raises UserError, which names the line.
    """
    rows = {"jsonl": _json_lines, "csv": _csv_lines, "parquet": _parquet_rows}[KINDS[path.suffix]](path)
    line = 0
    try:
        for line, row in rows:
            row = {"history": row} if isinstance(row, list) else row
            if not isinstance(row, dict) or "history" not in row or None in row:
                raise UserError(f"{path}:{line}: a row has the columns user_id and history, and a history is a list")
            items = row["history"].split() if isinstance(row["history"], str) else row["history"]
            if not isinstance(items, list | None):
                raise UserError(f"{path}:{line}: history must be a list of item ids, got {items!r}")
            user = row.get("user_id", str(line))
            if user is None or user != user:  # NaN
                raise UserError(f"{path}:{line}: user_id is missing")
            user = user.decode() if isinstance(user, bytes) else user
            if any(isinstance(text, str) and _NOT_UTF8.search(text) for text in (user, row["history"])):
                raise UserError(f"{path}:{line}: not UTF-8")
            yield user if isinstance(user, str | int | float) else str(user), items or []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, pa.ArrowException) as error:  # also bytes that are not UTF-8
        raise UserError(f"{path}:{line + 1}: cannot be read: {one_line(error)}") from None


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())


def _csv_lines(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**27)  # characters of the longest history
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if "history" not in (reader.fieldnames or ()):
                raise UserError(f"{path}:1: there is no column history; the first line names the columns")
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise UserError(f"{path}:{reader.reader.line_num}: cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(path) as file:
        names = [name for name in ("user_id", "history") if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=PART_ROWS, columns=names)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _count(path: Path) -> int:
    """How many rows a file has, about: for the progress bar."""
    if KINDS[path.suffix] == "parquet":
        with pq.ParquetFile(path) as parquet:
            return int(parquet.metadata.num_rows)
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _answer_all(source: Path, parts: Path, engine: Engine) -> None:
    """Write the parts that are missing."""
    done = {int(part.name.partition("-")[0]) for part in parts.glob("[!.]*.part")}
    sizes: dict[int, int] = {}
    rows = read_histories(source)
    first = next(rows, None)  # what is no table of histories is noticed before the bar
    with tqdm(total=_count(source), unit=" histories", ncols=100, disable=None) as bar:

        def missing() -> Iterator[tuple[int, list[Row]]]:
            whole = itertools.chain([first] if first else [], rows)
            for number in itertools.count():
                part = list(itertools.islice(whole, PART_ROWS))
                if not part:
                    return
                if number in done:
                    bar.update(len(part))
                else:
                    sizes[number] = len(part)
                    yield number, part

        for number, content, unknown, popular in engine(missing()):
            size = sizes.pop(number)
            name = f"{number:09d}-{size}-{unknown}-{popular}.part"
            write_file(parts / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
            bar.update(size)


def _join(parts: list[Path], output: Path, kind: str, titles: bool) -> None:
    """Join the parts, a row per recommended item in CSV and Parquet, a line per history in JSON lines."""

    def write(path: Path) -> None:
        if kind == "parquet":
            with pq.ParquetWriter(path, _columns(titles)) as writer:
                for part in parts:
                    writer.write_table(pq.read_table(part))
            return
        with path.open("wb") as file:
            if kind == "csv":
                file.write(",".join(_columns(titles).names).encode() + b"\n")
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, file)

    write_file(output, write)


def on_this_machine(recommender: Recommender, request: Request) -> Engine:
    """Answer in this process."""
    return lambda parts: (answer(recommender, request, number, rows) for number, rows in parts)


def on_ray(checkpoint: Path, request: Request, jobs: int, device: str | None, model: str | None) -> Engine:
    """Answer on a Ray cluster: `jobs` workers, each with a model of its own, loaded from `checkpoint`."""
    from recbole_sigma.experiment.ray import cluster, ray  # an extra, and slow

    threads = max((os.cpu_count() or 1) // jobs, 1)

    class Worker:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(threads)
            self.recommender = Recommender.load(checkpoint.absolute(), device, model)

        def answer(self, number: int, rows: list[Row]) -> Answer:
            return answer(self.recommender, request, number, rows)

    def engine(parts: Iterable[tuple[int, list[Row]]]) -> Iterator[Answer]:
        with cluster(jobs, threads, 0):
            gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU") else 0
            pool = ray.util.ActorPool(
                [ray.remote(num_cpus=threads, num_gpus=gpus)(Worker).remote() for _ in range(jobs)]
            )
            waiting = 0
            try:
                for part in parts:
                    if waiting == 2 * jobs:  # so that memory is bounded, and no worker waits
                        yield pool.get_next_unordered()
                        waiting -= 1
                    pool.submit(lambda worker, value: worker.answer.remote(*value), part)
                    waiting += 1
                while pool.has_next():
                    yield pool.get_next_unordered()
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, UserError) else error) from None
            except ray.exceptions.RayActorError as error:
                raise UserError(
                    f"--engine=ray: a worker was lost; repeat the command ({one_line(error)[:200]})"
                ) from None

    return engine
