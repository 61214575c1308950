"""Which column is what, and its values: ids as text, times as whole numbers, ratings as numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recbole_sigma.convert.formats import ItemSource, Source
from recbole_sigma.errors import UserError, did_you_mean, one_line

NONE = "none"  # --time=none: there is no such column, whatever its name
_USUAL = {  # letters and digits of usual names, the likeliest first
    "user": "userid user uid reviewerid sessionid session customerid visitorid username accountid memberid profileid",
    "item": "itemid item iid parentasin asin movieid productid businessid bookid isbn songid trackid videoid artistid "
    "articleid locationid venueid gameid appid productname sku",
    "time": "timestamp unixtimestamp unixreviewtime time timems datetime date eventtime createdat ts reviewtime "
    "datestring checkintime eventdate timeframe",
    "rating": "rating ratings overall stars score",
    "title": "title itemname name movietitle producttitle productname trackname itemtitle",
    "categories": "categories category genres genre class tags maincategory maincat",
}
_MISSING = ("", "na", "n/a", "nan", "null", "none", "\\n", "nat")  # of times and ratings
_NUMBER = r"^[-+]?\d+\.?\d*([eE][-+]?\d+)?$"
_PARTS = r"^(?P<whole>-?\d+)(?:\.(?P<fraction>\d*?)0*)?$"
_EARLIEST, _LATEST = (pd.Timestamp(year, tz="UTC") for year in ("1678", "2262"))  # what nanoseconds in int64 can say


def find_columns(source: Source | ItemSource, names: Sequence[str], path: object) -> dict[str, str]:
    """Role (user, item, time, ...) -> name of the column; roles without a column are left out.

    Raises UserError for a given name that is no column, and where no user or item is given or guessed.
    """
    about_items = isinstance(source, ItemSource)
    roles = ("item", "title", "categories") if about_items else ("user", "item", "time", "rating")
    found: dict[str, str] = {}
    by_letters: dict[str, str] = {}
    for name in names:
        by_letters.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    for role in roles:
        given = getattr(source, role)
        option = f"--{role}_id" if about_items and role == "item" else f"--{role}"
        usual = _USUAL[role].split() + (["id"] if about_items and role == "item" else [])
        guesses = [by_letters[each] for each in usual if each in by_letters]
        if given not in (None, NONE, *names):
            hint = did_you_mean(given, names)
            raise UserError(f"{path}: no column {given!r} ({option}); the columns are {', '.join(names[:30])}{hint}")
        if given != NONE and (given or guesses):
            found[role] = given or next((name for name in guesses if name not in found.values()), guesses[0])
            twins = [name for name in names if re.fullmatch(re.escape(found[role]) + r"(\.\d+)?", name)]
            if not given and len(twins) > 1:
                raise UserError(f"{path}: which column has the {role}s? Give {option}=NAME, among {', '.join(twins)}")
        elif role in ("user", "item"):
            listed = f"Name it {role}_id, or give {option}=NAME, among {', '.join(names[:30])}"
            raise UserError(f"{path}: which column has the {role}s? {listed}")
    if len({*found.values()}) < len(found):
        raise UserError(f"{path}: one column is used twice: {found}; give {', '.join(f'--{role}' for role in found)}")
    return found


def as_text(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Values as text without blanks around it; whole numbers have no point. Raises UserError for lists."""
    values = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(values.type, pa.UuidType):
        values = pa.array([each and str(each) for each in values.to_pylist()], pa.string())
    if pa.types.is_nested(values.type):
        raise UserError(f"column {name!r} holds {values.type}, not one value per row; give another column")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        if pc.all(pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))).as_py():
            values = values.cast(pa.int64())
    try:
        return pc.utf8_trim_whitespace(values.cast(pa.string()))
    except pa.ArrowException as error:
        raise UserError(f"column {name!r} of type {values.type} cannot be read as text: {one_line(error)}") from None


def numbers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (NaN where missing), and which of them are wrong."""
    text = _without_missing(text)
    try:
        values = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = pd.to_numeric(text.to_pandas(), errors="coerce").to_numpy(np.float64)
    present = text.is_valid().to_numpy(zero_copy_only=False)
    return values, present & ~np.isfinite(values)


def _without_missing(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(_MISSING)), None, text)


@dataclass
class Times:
    """Reads the times of a source, block by block, without losing a digit."""

    format: str | None = None  # of dates; None: ISO 8601
    dates: bool | None = None  # else numbers. Without a format, most of the first block decide

    def parse(self, text: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
        """Whole numbers (int64), which of them are wrong, and `digits`: a time is its number / 10**digits.

        Dates are seconds since 1970, in UTC where they name no zone.
        """
        text = _without_missing(text)
        if self.format:
            self.dates = True
        if self.dates is None and text.null_count < len(text):
            shaped = pc.match_substring_regex(text, _NUMBER)
            self.dates = 2 * pc.sum(shaped).as_py() < len(text) - text.null_count
        return _dates(text, self.format or "ISO8601") if self.dates else _decimals(text)


def _dates(text: pa.Array, form: str) -> tuple[np.ndarray, np.ndarray, int]:
    different = text.dictionary_encode()
    try:
        moments = pd.to_datetime(different.dictionary.to_pandas(), format=form, utc=True, errors="coerce")
    except ValueError as error:
        raise UserError(f"--time_format: {error}; write it as in '%m/%d/%Y %H:%M:%S'") from None
    moments = moments.where((moments > _EARLIEST) & (moments < _LATEST)).dt.tz_localize(None)
    nanoseconds = np.append(moments.to_numpy("datetime64[ns]").view(np.int64), np.iinfo(np.int64).min)
    values = nanoseconds[different.indices.fill_null(len(moments)).to_numpy()]
    wrong = values == np.iinfo(np.int64).min
    values[wrong] = 0
    digits = next(digits for digits in (0, 3, 6, 9) if not (values % 10 ** (9 - digits)).any())
    return values // 10 ** (9 - digits), wrong, digits


def _decimals(text: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
    digits = 0
    try:
        whole = text.cast(pa.int64())
    except pa.ArrowInvalid:
        parts = pc.extract_regex(text, _PARTS)
        odd = np.flatnonzero(pc.and_(text.is_valid(), parts.is_null()).to_numpy(zero_copy_only=False))
        if len(odd):  # exponents, signs, words
            cells = text.to_pylist()
            for row in odd:
                cells[row] = _without_exponent(cells[row])
            parts = pc.extract_regex(pa.array(cells, pa.string()), _PARTS)
        before, after = pc.struct_field(parts, 0), pc.struct_field(parts, 1)
        length = pc.utf8_length(before)
        too_large = pc.or_(pc.greater(length, 19), pc.and_(pc.equal(length, 19), pc.greater(before, str(2**63 - 1))))
        before = pc.if_else(too_large, None, before)
        room = 18 - (pc.max(pc.utf8_length(before)).as_py() or 0)
        digits = max(min(room, 9, pc.max(pc.utf8_length(after)).as_py() or 0), 0)
        after = pc.utf8_slice_codeunits(pc.utf8_rpad(after, digits, "0"), 0, digits)
        whole = pc.binary_join_element_wise(before, after, "").cast(pa.int64())
    wrong = whole.is_null().to_numpy(zero_copy_only=False)
    return whole.fill_null(0).to_numpy(zero_copy_only=False).copy(), wrong, digits


def _without_exponent(text: str) -> str | None:
    """1.5e9 as 1500000000; None for what is no time."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return f"{number:.9f}" if number.is_finite() and abs(number) < 2**63 else None


def same_digits(values: np.ndarray, blocks: list[tuple[int, int]]) -> int:
    """Bring times to the same number of digits, in `values` itself: the most that a block has and int64 has room for.

    `blocks` are (rows, digits). Returns the digits: 0 (the unit of the source), or 3, 6 or 9 where int64 has room.
    """
    ends = np.cumsum([rows for rows, _ in blocks])
    pieces = [(values[end - rows : end], digits) for end, (rows, digits) in zip(ends, blocks, strict=True) if rows]
    most = -(-max(digits for _, digits in pieces) // 3) * 3
    if not any(digits != most for _, digits in pieces):
        return most
    largest = [(int(np.abs(piece).max()), digits) for piece, digits in pieces]
    while any(size * 10 ** max(most - digits, 0) >= 2**63 for size, digits in largest):
        most -= 1
    for piece, digits in pieces:
        if digits < most:
            piece *= 10 ** (most - digits)
        else:
            piece //= 10 ** (digits - most)
    return most
