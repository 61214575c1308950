"""Errors that a user is meant to read."""

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LONGEST = 900  # characters of a message


class UserError(Exception):
    """A mistake of the user's: a setting, a file, a name.

    The message says what is wrong and what would be right. It is all that the command line shows (exit status 2), and
    one line: characters that cannot be printed are escaped, and the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message)
        half = _LONGEST // 2
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}")


def one_line(text: object) -> str:
    """The text of an exception, for example, with every run of white space as one blank."""
    return " ".join(str(text).split())


def did_you_mean(name: str, known: Iterable[str], same_numbers: bool = False) -> str:
    """`; did you mean 'SIGMA'?` for the known name nearest to `name` (upper and lower case apart), or nothing.

    With `same_numbers`, a name whose numbers differ is another one: `ml-1m` is no misspelt `ml-10m`.
    """
    by_lower_case = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower()[:80], by_lower_case, n=1, cutoff=0.75)  # long names take long
    digits = [re.sub(r"\D", "", each) for each in (name, *nearest)]
    if same_numbers and len({*digits}) > 1:
        return ""
    return f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work that can be resumed: `how` says how."""

    def __init__(self, folder: object, how: str = "") -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.how = how or f"recbole-sigma train --resume={shlex.quote(str(folder))}"


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn memory that runs out inside, on the CPU or on a GPU, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        import torch  # not at the top: this module is imported by every command

        if not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            raise
        smaller = "make train_batch_size, eval_batch_size, MAX_ITEM_LIST_LENGTH or hidden_size smaller"
        raise UserError(f"not enough memory: {smaller} ({one_line(error)[:200]})") from None
