"""Raw data of many forms -> atomic files. `convert` is imported when it is first used: it needs pyarrow and pandas."""

from typing import TYPE_CHECKING, Any

from recbole_sigma.convert.formats import Filters, ItemSource, Source, Summary

if TYPE_CHECKING:
    from recbole_sigma.convert.conversion import convert

__all__ = ["Filters", "ItemSource", "Source", "Summary", "convert"]


def __getattr__(name: str) -> Any:
    if name != "convert":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recbole_sigma.convert.conversion import convert

    return convert
