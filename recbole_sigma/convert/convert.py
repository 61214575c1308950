"""convert(): raw interactions -> NAME.inter and NAME.item."""

from pathlib import Path

from recbole_sigma.convert.formats import Filters, ItemSource, Source, Summary

KEEP_ALL = Filters()


def convert(
    source: Source,
    out: Path,
    filters: Filters = KEEP_ALL,
    items: ItemSource | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Write `out/NAME.inter` (and NAME.item), NAME being `out.name`; they appear complete or not at all.

    Args:
        strict: refuse the first bad line instead of counting it.
        overwrite: replace the files of an `out` that is not empty.

    Raises UserError for files, columns and values that cannot be right, and for nothing left.
    """
    raise NotImplementedError
