"""A dozen rows of each raw format, as its publisher writes it, become exactly the expected atomic files."""

from pathlib import Path

import pytest

from recbole_sigma.convert import ItemSource, Source, convert

SAMPLE = Path(__file__).parents[2] / "dataset" / "sample"
LOG = ("user", "artist", "album", "track", "time")
REVIEW = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"}

# Name of the expected files -> raw file and what its name does not say; the same of the file about items.
FORMATS = {
    "ml-1m": ("ml-1m-ratings.dat", {"delimiter": "::", "columns": ("user", "item", "rating", "time")}),
    "ml-100k": ("ml-100k-u.data", {}),
    "ml-20m": ("ml-20m-ratings.csv", {}),
    "amazon-2014-csv": ("amazon-2014-ratings.csv", {}),
    "amazon-2014": ("amazon-2014-reviews.json", REVIEW),
    "amazon-2018-csv": ("amazon-2018-ratings.csv", {"columns": ("item", "user", "rating", "time")}),
    "amazon-2023": ("amazon-2023-reviews.jsonl", {}),
    "amazon-2023-csv": ("amazon-2023-5core.csv", {}),
    "yelp": ("yelp-review.json", {}),
    "steam": ("steam-reviews.json", {"python_literals": True}),
    "gowalla": ("gowalla-checkins.txt", {"columns": ("user", "time", "latitude", "longitude", "location"),
                                         "item": "location"}),
    "lastfm": ("lastfm-tags.dat", {}),
    "diginetica": ("diginetica-item-views.csv", {"user": "sessionId", "time": "timeframe"}),
    "yoochoose": ("yoochoose-clicks.dat", {"columns": ("session", "time", "item", "category")}),
    "kuairand": ("kuairand-log.csv", {"time": "time_ms"}),
    "lfm-1b": ("lfm-1b-events.txt", {"columns": LOG, "item": "track"}),
}  # fmt: skip
ITEMS = {
    "ml-1m": ("ml-1m-movies.dat", {"columns": ("item", "title", "genres")}),
    "ml-20m": ("ml-20m-movies.csv", {}),
    "amazon-2014": ("amazon-2014-metadata.json", {"python_literals": True}),
    "yelp": ("yelp-business.json", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_raw_format_becomes_exactly_the_expected_files(name: str, tmp_path: Path) -> None:
    file, form = FORMATS[name]
    source, items = Source((SAMPLE / "raw" / file,), **form), None
    if name in ITEMS:
        file, form = ITEMS[name]
        items = ItemSource((SAMPLE / "raw" / file,), **form)
    made = convert(source, tmp_path / name, items=items, strict=True)
    expected = {path.name: path.read_bytes() for path in (SAMPLE / "expected").glob(f"{name}.*")}
    assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == expected
    assert (made.users, made.items, made.interactions, made.bad_lines) == (4, 3, 12, 0)


def test_every_raw_sample_is_converted() -> None:
    used = {file for formats in (FORMATS, ITEMS) for file, _ in formats.values()}
    assert used == {path.name for path in (SAMPLE / "raw").iterdir()}
