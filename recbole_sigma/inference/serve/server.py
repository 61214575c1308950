"""The process: a socket, a model, the worker's thread, uvicorn; SIGHUP loads the model again."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from recbole_sigma.errors import UserError
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.inference.serve.app import create_app
from recbole_sigma.inference.serve.guard import Connection, Guard, Metrics
from recbole_sigma.inference.serve.limits import Limits
from recbole_sigma.inference.serve.sessions import Sessions
from recbole_sigma.inference.serve.worker import Worker

SHUTDOWN_SECONDS = 15  # for the requests that are being answered

logger = logging.getLogger(__name__)


def serve(
    load: Callable[[], Recommender],
    host: str,
    port: int,
    limits: Limits,
    key: str | None = None,
    sessions: Path | None = None,
    threads: int = 1,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have arrived are answered first. Raises UserError before it serves.

    Args:
        load: loads the model; called at the start and, for a new one, at SIGHUP.
        key: what clients must send; None: nothing.
        sessions: the file that keeps sessions.
        threads: of the model.
    """
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(__name__.rpartition(".")[0]).addHandler(log)
    logging.getLogger("recbole_sigma.inference.recommender").setLevel(logging.ERROR)  # no line per unknown item
    with _bound(host, port) as listener:
        recommender, metrics = _warm(load()), Metrics()
        worker = Worker(recommender, Sessions(limits, sessions), threads, metrics.batches.observe)
        metrics.sessions.set_function(lambda: len(worker.sessions))
        app = Guard(create_app(worker, limits, metrics.registry, key is not None), limits, key, metrics)
        config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", access_log=False, log_level="error",
            server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )  # fmt: skip
        worker.start()
        if key is None and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            logger.warning("--host=%s without a key: anybody who reaches it may ask", host)
        listener.listen(1024)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print(f"{recommender.config.model}, {len(recommender.items)} items: {address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # the signal that uvicorn has obeyed
            asyncio.run(_run(uvicorn.Server(config), listener, worker, load, metrics))
        worker.stop()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(*found[0][:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host, --port: {host}:{port} cannot be used: {reason}") from None
    return listener


def _warm(recommender: Recommender) -> Recommender:
    """Compile and cache what the first request would wait for."""
    items = recommender.items[:1]
    recommender.recommend([items, items])
    recommender.session(items).to_bytes()
    return recommender


async def _run(
    server: uvicorn.Server, listener: socket.socket, worker: Worker, load: Callable[[], Recommender], metrics: Metrics
) -> None:
    """Serve, and at SIGHUP load the model beside the old one, which answers meanwhile, and stays if that fails."""
    asked = asyncio.Event()

    async def reload_when_asked() -> None:
        while await asked.wait():
            asked.clear()
            try:
                recommender = await asyncio.to_thread(lambda: _warm(load()))
                await worker.ask(lambda *_: worker.swap(recommender))  # noqa: B023 - called before the next one
                metrics.reloads.labels("done").inc()
            except Exception as error:
                metrics.reloads.labels("failed").inc()
                logger.error("the model was not loaded, the old one stays: %s", error)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    reloading = asyncio.create_task(reload_when_asked())
    try:
        await server.serve(sockets=[listener])
    finally:
        reloading.cancel()
