"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's: a setting, a file, a name.

    The message is one line that says what is wrong and what would be right, and is all that the command line shows
    (exit status 2, no traceback).
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'SIGMA'?` for the known name nearest to `name` (upper and lower case apart), or nothing."""
    by_lower_case = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""
