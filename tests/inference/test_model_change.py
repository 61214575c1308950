"""Another model takes over from the one that serves: nothing that was answered is lost, and what fails is no end."""

import asyncio
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import Recommender, run
from recbole_sigma.inference.serve import guard, server
from recbole_sigma.inference.serve.limits import Limits, Refused
from recbole_sigma.inference.serve.sessions import Sessions
from recbole_sigma.inference.serve.worker import Worker
from tests.helpers.runs import OUR_SIZE, TINY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = str(tmp_path_factory.mktemp("saved"))
    return run("Mamba4Rec", "ml-100k", settings={**TINY, **OUR_SIZE, "epochs": 1, "checkpoint_dir": folder}).folder


def test_a_session_of_the_batch_in_which_the_model_changes_is_in_the_file(checkpoint: Path, tmp_path: Path):
    old, new = (Recommender.load(checkpoint) for _ in range(2))
    worker = Worker(old, Sessions(Limits(), tmp_path / "s.db"), 1, lambda n: None)

    def create(rec: Recommender, sessions: Sessions) -> str:
        key = sessions.create(rec, ["50", "181"], "skip")
        sessions.get(rec, key)
        return key

    async def ask() -> str:
        requests = [
            asyncio.ensure_future(worker.ask(create)),
            asyncio.ensure_future(worker.ask(lambda *_: worker.swap(new))),
        ]
        await asyncio.sleep(0)
        worker.start()  # takes both together
        return (await asyncio.gather(*requests))[0]

    key = asyncio.run(ask())
    worker.stop()
    rows = sqlite3.connect(tmp_path / "s.db").execute("SELECT id, items FROM sessions").fetchall()
    assert [(name, json.loads(items)) for name, items in rows] == [(key, ["50", "181"])]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_change_of_the_model_that_fails_does_not_end_later_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "_warm", lambda recommender: recommender)
    asked: list[Any] = []

    class Stub:
        async def ask(self, work: Any) -> None:
            asked.append(work)
            if len(asked) == 1:
                raise Refused(503, "sessions cannot be saved: the disk is full")

        async def serve(self, sockets: Any) -> None:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.2)

    metrics: Any = guard.Metrics()
    asyncio.run(server._run(Stub(), None, Stub(), lambda: None, metrics))  # type: ignore[arg-type]
    found = {how: metrics.reloads.labels(how)._value.get() for how in ("failed", "done")}
    assert found == {"failed": 1, "done": 2}
