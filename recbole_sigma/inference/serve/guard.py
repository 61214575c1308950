"""Around the application: the key, the limits of rate, body and time, the counters, and errors without a traceback."""

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from typing import Any

import h11
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from uvicorn.protocols.http.h11_impl import H11Protocol

from recbole_sigma.inference.serve.limits import (
    BODY_SECONDS,
    HEADER_SECONDS,
    MAX_REQUESTS,
    Limits,
    Refused,
    errors,
)

OPEN = {"/", "/docs", "/openapi.json", "/health", "/ready"}  # without a key and a limit of rate
MAX_ADDRESSES = 10_000  # whose rate is known at the same time
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"},
    408: {"Connection": "close"}, 413: {"Connection": "close"},
}  # fmt: skip

logger = logging.getLogger(__name__)


class DisconnectedError(Exception):
    """The client has gone before its request was complete."""


class Metrics:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ours: Any = {"registry": self.registry, "namespace": "recbole_sigma"}
        self.requests = Counter("requests", "Requests", ["method", "path", "status"], **ours)
        self.seconds = Histogram("request_seconds", "Seconds from the headers to the answer", ["path"], **ours)
        sizes = [2**n for n in range(9)]
        self.batches = Histogram("batch_requests", "Requests that were answered together", buckets=sizes, **ours)
        self.sessions = Gauge("sessions", "Sessions", **ours)
        self.reloads = Counter("reloads", "Models loaded again", ["result"], **ours)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, limits: Limits, key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._key = None if key is None else key.encode()
        self._metrics = metrics
        self._running = 0
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when, by address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started, status, body = time.perf_counter(), 499, None

        async def send_on(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def receive_on() -> Any:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body}, None
            return message

        self._running += 1
        try:
            body = await self._admit(scope, receive)
            await self._app(scope, receive_on, send_on)
        except DisconnectedError:
            pass
        except Refused as refused:
            content = errors((refused.field, str(refused)))
            await JSONResponse(content, refused.status, HEADERS.get(refused.status))(scope, receive, send_on)
        except Exception:  # the application has answered 500
            logger.exception("%s %s failed", scope["method"], scope["path"])
        finally:
            self._running -= 1
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE") else "other"
            self._metrics.requests.labels(method, path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _admit(self, scope: Any, receive: Any) -> bytes:
        """The request's body. Raises Refused, or DisconnectedError."""
        if self._running > MAX_REQUESTS:
            raise Refused(503, "too many requests at the same time")
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN:
            self._check_rate(scope["client"][0] if scope["client"] else "")
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = self._key is None or hmac.compare_digest(given.strip(), self._key)
            if not right or (self._key and scheme.lower() != b"bearer"):
                raise Refused(401, "the API key is missing or wrong: send Authorization: Bearer KEY", "authorization")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._body(receive, headers)
        except TimeoutError:
            raise Refused(408, f"the body has not arrived within {BODY_SECONDS:g} seconds", "body") from None

    async def _body(self, receive: Any, headers: dict[bytes, bytes]) -> bytes:
        """The body. One that is too large is read, but not kept: a client that still writes would not read our answer.

        A client that asks before it sends (`Expect: 100-continue`) gets the answer at once.
        """
        limit, body = self._limits.max_body, bytearray()
        size = int(headers.get(b"content-length", b"0"))
        more = size <= limit or b"expect" not in headers
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise DisconnectedError
            size = max(size, len(body) + len(message["body"]))
            if size <= limit:
                body += message["body"]
            more = message.get("more_body", False)
        if size > limit:
            raise Refused(413, f"the body must have at most {limit} bytes", "body")
        return bytes(body)

    def _check_rate(self, address: str) -> None:
        """Count a request of an address. Raises Refused after `rate` requests at once; `rate` a second come back."""
        rate, now = self._limits.rate, time.monotonic()
        left, since = self._tokens.pop(address, (float(rate), now))
        left = min(left + (now - since) * rate, rate)
        self._tokens[address] = (left - 1 if left >= 1 else left), now
        if len(self._tokens) > MAX_ADDRESSES:
            self._tokens.popitem(last=False)
        if rate and left < 1:
            raise Refused(429, f"at most {rate} requests per second")


class Connection(H11Protocol):
    """Closes a connection whose request headers are not complete after HEADER_SECONDS; uvicorn would wait forever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not waits and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
