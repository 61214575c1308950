"""What the service accepts, and how it refuses."""

from dataclasses import dataclass

from recbole_sigma.errors import UserError

BODY_SECONDS = 10.0  # for a request's body to arrive
HEADER_SECONDS = 10.0  # for its headers
MAX_REQUESTS = 1024  # that are answered at the same time; more get 503


@dataclass(frozen=True)
class Limits:
    """The options of `recbole-sigma serve` that a request can exceed."""

    max_body: int = 2**20  # bytes
    max_history: int = 1000  # items, of a history and of a session
    max_histories: int = 100  # of a request
    max_k: int = 100
    max_sessions: int = 10_000
    session_seconds: int = 3600  # that a session is kept without a request
    rate: int = 0  # requests per second of one client address; 0: no limit


class Refused(UserError):  # noqa: N818 - it is an answer
    """An answer that is an error: `status`, the `field` of the request that is wrong (empty: none), and a message."""

    def __init__(self, status: int, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.field = field


def errors(*problems: tuple[str, str]) -> dict[str, list[dict[str, str]]]:
    """The body of an error: a field and a message per problem."""
    return {"errors": [{"field": field, "message": message} for field, message in problems]}
