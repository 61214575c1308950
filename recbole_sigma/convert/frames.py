"""Interactions in a pandas, polars or Arrow table, as a data set on disk that a later run finds again."""

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from recbole_sigma.convert.conversion import KEEP_ALL, convert_readers
from recbole_sigma.convert.formats import Source
from recbole_sigma.convert.reader import BadLines, Batches
from recbole_sigma.errors import UserError, one_line


def store(frame: Any, data_path: Path) -> str:
    """Write the data set `frame-DIGEST` into `data_path`, unless it is there; returns its name.

    The digest is of the content, so that equal frames are one data set. Columns are guessed as for a file. Raises
    UserError for something else than a table, a row without user, item or time, or columns that cannot be guessed.
    """
    reader = Batches("frame", _table(frame))
    try:
        data_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".frame-", dir=data_path) as folder:
            made = Path(folder, "frame")
            convert_readers([reader], Source((Path("frame"),)), made, KEEP_ALL, [], BadLines(strict=True), True)
            with (made / "frame.inter").open("rb") as file:
                name = f"frame-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
            (made / "frame.inter").rename(made / f"{name}.inter")
            with contextlib.suppress(FileExistsError, NotADirectoryError):  # an equal frame is there
                if not (data_path / name).is_dir():
                    made.rename(data_path / name)
    except OSError as error:
        raise UserError(f"{error.filename or data_path}: cannot be written: {error.strerror or error}") from None
    return name


def _table(frame: Any) -> pa.Table:
    """The table as Arrow's. A column of a pandas frame that mixes kinds becomes text."""
    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "collect_schema") and hasattr(frame, "collect"):  # polars, perhaps lazy
        frame = frame.lazy().collect()
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    if not isinstance(frame, pd.DataFrame):
        what = "the name of a data set, or a pandas, polars or pyarrow table"
        raise UserError(f"dataset must be {what}, got a {type(frame).__name__}")
    named = [name for name in frame.index.names if name is not None]
    frame = frame.reset_index(named) if named else frame
    if len(again := frame.columns[frame.columns.duplicated()]):
        raise UserError(f"dataset: the frame has two columns {str(again[0])!r}")
    columns = {}
    for name in frame.columns:
        try:
            columns[str(name)] = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, TypeError):
            present = frame[name].notna()
            columns[str(name)] = pa.array(
                [str(each) if is_there else None for each, is_there in zip(frame[name], present, strict=True)]
            )
    try:
        return pa.table(columns)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"dataset: the frame cannot be read: {one_line(error)}") from None
