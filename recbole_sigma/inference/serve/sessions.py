"""The service's sessions: bounded in number, forgotten when nobody asks for them, and saved in a SQLite file if wanted.

Everything but the constructor is called in the model's thread.
"""

import json
import secrets
import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from recbole_sigma.errors import UserError
from recbole_sigma.inference.recommender import OnUnknown, Recommender
from recbole_sigma.inference.serve.limits import Limits, Refused
from recbole_sigma.inference.session import Session

FORMAT = 1  # of the file: SQLite's user_version


@dataclass
class _Entry:
    """One session, with its state, or the items alone after another model was loaded, or None: it is in the file."""

    used: float  # time of the last request, in seconds since 1970
    content: Session | list[str] | None = None


class Sessions:
    """Sessions by their ids, which cannot be guessed."""

    def __init__(self, limits: Limits, path: Path | None = None) -> None:
        self._limits = limits
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the one that was not used for longest comes first
        self._unsaved: set[str] = set()
        self._file = _open(path or Path(":memory:"))
        self._keeps = path is not None
        for key, used in self._file.execute("SELECT id, used FROM sessions ORDER BY used"):
            self._entries[key] = _Entry(used)

    def __len__(self) -> int:
        return len(self._entries)

    def create(self, recommender: Recommender, items: list[str], on_unknown: OnUnknown) -> str:
        """A new session's id. Raises Refused if there are too many, UserError for an unknown item if that is wanted."""
        self._expire()
        if len(self) >= self._limits.max_sessions:
            raise Refused(503, f"there are {len(self)} sessions, as many as allowed; delete one, or try again later")
        session, key = recommender.session(items, on_unknown), secrets.token_urlsafe(16)
        self._entries[key] = _Entry(time.time(), session)
        return key

    def get(self, recommender: Recommender, key: str) -> Session:
        """The session, which the caller may change. Raises Refused if there is none."""
        self._expire()
        if (entry := self._entries.get(key)) is None:
            raise Refused(404, "there is no such session, or it has expired")
        if isinstance(entry.content, list):
            entry.content = recommender.session(entry.content)
        elif entry.content is None:
            query = "SELECT items, state FROM sessions WHERE id = ?"
            items, state = self._file.execute(query, [key]).fetchone()
            try:
                entry.content = recommender.restore_session(state)
            except UserError:  # the state of another model
                entry.content = recommender.session(json.loads(items))
        entry.used = time.time()
        self._entries.move_to_end(key)
        self._unsaved.add(key)
        return entry.content

    def delete(self, key: str) -> None:
        """Forget a session, if there is one."""
        self._entries.pop(key, None)
        self._unsaved.add(key)

    def _expire(self) -> None:
        """Forget the sessions that nobody has asked for during `session_seconds`."""
        oldest = time.time() - self._limits.session_seconds
        while self._entries and self._entries[key := next(iter(self._entries))].used < oldest:
            self.delete(key)

    def leave_model(self) -> None:
        """Keep the items only: states belong to a model, and the next one reads the items when a session is used."""
        for entry in self._entries.values():
            if isinstance(entry.content, Session):
                entry.content = entry.content.history

    def save(self) -> None:
        """Write what was used since the last call, in one transaction. Raises Refused if the file cannot be written.

        Sessions are then what the file says: the callers get an error, and may repeat their requests.
        """
        unsaved, self._unsaved = self._unsaved, set()
        if not self._keeps or not unsaved:
            return
        try:
            with self._file:
                for key in unsaved:
                    entry = self._entries.get(key)
                    if entry is None:
                        self._file.execute("DELETE FROM sessions WHERE id = ?", [key])
                    elif isinstance(entry.content, Session):
                        row = key, entry.used, json.dumps(entry.content.history), entry.content.to_bytes()
                        self._file.execute("REPLACE INTO sessions VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            self._unsaved = unsaved - self._entries.keys()  # deleted ones, which the file still has
            for key in unsaved & self._entries.keys():
                self._entries[key].content = None
                if not self._file.execute("SELECT 1 FROM sessions WHERE id = ?", [key]).fetchone():
                    del self._entries[key]
            raise Refused(503, f"sessions cannot be saved: {error}") from None

    def close(self) -> None:
        """Write the file's journal into it."""
        self._file.close()


def _open(path: Path) -> sqlite3.Connection:
    """The SQLite file of sessions, locked for this process. Raises UserError for any other file."""
    try:
        if str(path) != ":memory:":
            path.touch(mode=0o600)  # histories are personal
        file = sqlite3.connect(path, timeout=1, check_same_thread=False)
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            file.execute(f"PRAGMA {setting}")
        tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        ((version,),) = file.execute("PRAGMA user_version")
        if (tables, version) not in (([], 0), (["sessions"], FORMAT)):
            raise UserError(f"--sessions: {str(path)!r} is a database of something else, or of another version")
        with file:
            file.execute("CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, used REAL, items TEXT, state BLOB)")
            file.execute(f"PRAGMA user_version = {FORMAT}")
    except (OSError, sqlite3.Error) as error:
        hint = "; another server uses it" if "locked" in str(error) else ""
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--sessions: {str(path)!r} cannot be used: {reason}{hint}") from None
    return file
