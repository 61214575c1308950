"""Raw data of many forms -> atomic files."""

from recbole_sigma.convert.convert import convert
from recbole_sigma.convert.formats import Filters, ItemSource, Source, Summary

__all__ = ["Filters", "ItemSource", "Source", "Summary", "convert"]
