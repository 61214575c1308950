"""The HTTP service, mostly as a process of its own: right answers, none lost, mistakes named, limits kept.

SERVE_REQUESTS=10000 sends so many concurrent requests instead of 400, and tries as many more cases of the schema.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from recbole_sigma import Recommender, cli, run
from recbole_sigma.commands import serve as command
from recbole_sigma.inference.serve import guard
from recbole_sigma.inference.serve.limits import Limits, Refused
from recbole_sigma.inference.serve.sessions import Sessions
from tests.helpers.models import refused as refusing
from tests.helpers.runs import OUR_SIZE, TINY
from tests.helpers.service import KEY, Browser, Service, browser, serving  # noqa: F401

REQUESTS = int(os.environ.get("SERVE_REQUESTS", "400"))
MISSING = httpx.codes.NOT_FOUND
Lists = list[tuple[str, float]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    settings = {**TINY, **OUR_SIZE, "epochs": 1, "checkpoint_dir": str(tmp_path_factory.mktemp("saved"))}
    return [run("Mamba4Rec", "ml-100k", settings={**settings, "seed": seed}).folder for seed in (1, 2)]


@pytest.fixture(scope="module")
def recommenders(checkpoints: list[Path]) -> list[Recommender]:
    return [Recommender.load(each) for each in checkpoints]


@pytest.fixture(scope="module")
def service(checkpoints: list[Path]) -> Iterator[Service]:
    with serving(checkpoints[0], max_body=500_000, max_histories=50, max_k=60, max_history=200) as service:
        yield service
        assert service.client.get("/ready").status_code == 200
        status, errors = service.stop(signal.SIGTERM)
        assert (status, errors) == (0, "")  # no traceback, whatever the tests sent


@pytest.fixture(scope="module")
def rec(recommenders: list[Recommender]) -> Recommender:
    return recommenders[0]


def near(answer: Any, best: Lists) -> bool:
    """Whether an answer is a list. Items whose scores are nearly equal may be swapped by rounding."""
    same = np.allclose(answer["scores"], [score for _, score in best], atol=1e-4)
    return same and len({*answer["items"]} ^ {item for item, _ in best}) <= 2


def histories_of(rec: Recommender, n: int, seed: int = 0) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [random.choice(rec.items, length).tolist() for length in random.integers(0, 30, n)]


def test_concurrent_requests_get_their_own_right_answers(service: Service, rec: Recommender):
    histories = histories_of(rec, REQUESTS)
    expected = {k: rec.recommend(histories, k) for k in (3, 10)}

    async def ask_all() -> dict[int, httpx.Response]:
        answers, left = {}, iter(range(REQUESTS))
        async with httpx.AsyncClient(base_url=service.address, headers=service.client.headers, timeout=60) as client:

            async def ask() -> None:
                for number in left:
                    body = {"histories": [histories[number]], "k": 3 if number % 5 == 0 else 10}
                    answers[number] = await client.post("/recommend", json=body)

            await asyncio.gather(*(ask() for _ in range(64)))
        return answers

    answers = asyncio.run(ask_all())
    assert len(answers) == REQUESTS
    for number, answer in answers.items():
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert near(result, expected[3 if number % 5 == 0 else 10][number]), number
    metrics = service.client.get("/metrics").text
    together = [float(re.search(rf"batch_requests_{name} (\S+)", metrics)[1]) for name in ("sum", "count")]
    assert together[0] >= REQUESTS and together[0] / together[1] > 1.1  # batches; small ones if this process is busy


def test_the_answer_to_several_histories(service: Service, rec: Recommender):
    body = {"histories": [["50", 181], [], ["50", "none"]], "k": 4, "exclude_seen": False}
    results = service.client.post("/recommend", json=body).raise_for_status().json()["results"]
    lists = rec.recommend(body["histories"], k=4, exclude_seen=False)
    assert [near(result, best) for result, best in zip(results, lists, strict=True)] == [True] * 3
    assert [(each["unknown"], each["popular"]) for each in results] == [(0, False), (0, True), (1, False)]
    assert [each["titles"] for each in results] == [[rec.titles[item] for item in each["items"]] for each in results]
    few = service.client.post("/recommend", json={"histories": [["50"]], "candidates": ["50", "1", "181"]}).json()
    assert {*few["results"][0]["items"]} == {"1", "181"}


def test_a_session_grows_and_is_forgotten(service: Service, rec: Recommender):
    client = service.client
    created = client.post("/sessions", json={"items": ["50", "none"], "k": 3})
    path = f"/sessions/{created.json()['session']}"
    assert created.status_code == 201 and created.json()["unknown"] == 1 and created.json()["length"] == 1
    assert near(created.json(), rec.recommend([["50"]], 3)[0])
    appended = client.post(f"{path}/items", json={"items": ["181", 1], "k": 5}).json()
    assert near(appended, rec.recommend([["50", "181", "1"]], 5)[0])
    read = client.get(path, params={"k": 5}).json()
    assert read["history"] == ["50", "181", "1"] and read["items"] == appended["items"]
    assert client.post(f"{path}/items", json={"items": ["1", "x"], "on_unknown": "error"}).status_code == 422
    assert client.post(f"{path}/items", json={"items": ["1"] * 198}).status_code == 422
    assert client.get(path).json()["history"] == ["50", "181", "1"]
    assert client.delete(path).status_code == 204
    for method, which in (("GET", path), ("DELETE", path), ("POST", f"{path}/items"), ("GET", "/sessions/..%2fx")):
        assert client.request(method, which, json={} if method == "POST" else None).status_code == MISSING


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "histories"), ({"histories": []}, 422, "histories"), ({"k": 1, "histories": 5}, 422, "histories"),
        ({"histories": [["50", True]]}, 422, "histories.0.1"),
        ({"histories": [["50"], [None]]}, 422, "histories.1.0"), ({"histories": ["50"]}, 422, "histories.0"),
        ({"histories": [["50"]], "k": 0}, 422, "k"), ({"histories": [["50"]], "k": 61}, 422, "k"),
        ({"histories": [["50"]], "k": "10"}, 422, "k"), ({"histories": [["50"]], "colour": 1}, 422, "colour"),
        ({"histories": [["50"]] * 51}, 422, "histories"), ({"histories": [["50"] * 201]}, 422, "histories.0"),
        ({"histories": [["5o"]], "on_unknown": "error"}, 422, "histories"), (b'{"histories": [["\xff"]]}', 400, ""),
        (b"{", 422, "1"), (b"[" * 20_000, 400, ""), (b'{"histories": [["50"]], "k": 1' + b"0" * 9000 + b"}", 400, ""),
        (b'{"histories": [["\\ud800"]], "k": NaN}', 422, "k"), ({"histories": [["50" * 300_000]]}, 413, "body"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_the_name_of_the_field(service: Service, body: Any, status: int, field: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = service.client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and "Traceback" not in answer.text
    assert field in [each["field"] for each in answer.json()["errors"]], answer.text


def test_without_the_key_only_health_and_pages_are_shown(service: Service):
    stranger = httpx.Client(base_url=service.address)
    for key in (None, "", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \xe4"):
        headers = {} if key is None else {"Authorization": key.encode("latin-1")}
        for method, path in (("POST", "/recommend"), ("GET", "/sessions/x"), ("GET", "/metrics")):
            answer = stranger.request(method, path, headers=headers)
            assert answer.status_code == 401 and answer.json()["errors"][0]["field"] == "authorization"
    for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
        page = stranger.get(path)
        assert page.status_code == 200 and not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page.text)


def test_a_body_that_is_too_large_is_refused_without_being_kept(service: Service):
    memory = Path(f"/proc/{service.process.pid}/status")
    before = int(re.search(r"VmRSS:\s+(\d+)", memory.read_text())[1])
    size = 100 if REQUESTS > 400 else 20  # MB
    for content in (b"x" * (size << 20), (b"x" * 2**20 for _ in range(size))):  # with its length, and in chunks
        answer = service.client.post("/recommend", content=content)
        assert answer.status_code == 413 and "500000" in answer.json()["errors"][0]["message"]
    assert int(re.search(r"VmRSS:\s+(\d+)", memory.read_text())[1]) - before < 15_000
    with service.connect() as asking:  # a client that asks first need not send anything
        head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {10**9}\r\n"
        asking.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert asking.recv(1000).startswith(b"HTTP/1.1 413")


def test_slow_clients_do_not_slow_down_others(service: Service):
    slow = [service.connect() for _ in range(100)]
    try:
        for number, each in enumerate(slow):
            head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 20\r\n"
            each.sendall(head.encode() + (b"\r\n{" if number % 2 else b"X-Sl"))
        started = time.monotonic()
        for _ in range(20):
            assert service.client.post("/recommend", json={"histories": [["50"]]}).status_code == 200
        assert time.monotonic() - started < 5
    finally:
        for each in slow:
            each.close()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Limits], str]]:
    """`guarded(limits)` -> the address of an application that answers `done`, in this process, with short times."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.3)
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await guard.JSONResponse("done")(scope, receive, send)

    def start(limits: Limits) -> str:
        guarded = guard.Guard(app, limits, None, guard.Metrics())
        server = uvicorn.Server(uvicorn.Config(guarded, http=guard.Connection, lifespan="off", log_level="error"))
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        servers.append((server, thread))
        thread.start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


def test_a_connection_that_sends_nothing_more_is_closed(guarded: Callable[[Limits], str]):
    port = int(guarded(Limits()).rpartition(":")[2])
    ask, answers = b"POST /recommend HTTP/1.1\r\nHost: x\r\n", []
    for beginning in (b"", ask, ask + b"\r\n" + ask, ask + b"Content-Length: 5\r\n\r\n12"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            slow.sendall(beginning)
            received = b""
            while part := slow.recv(10_000):
                received += part
            answers.append(received)
    assert answers[:2] == [b"", b""] and answers[2].startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answers[3]


def test_an_address_that_asks_too_often_has_to_wait(guarded: Callable[[Limits], str]):
    with httpx.Client(base_url=guarded(Limits(rate=5))) as client:
        answers = [client.get("/recommend") for _ in range(8)]
        assert [each.status_code for each in answers].count(429) >= 2 and answers[0].status_code == 200
        assert answers[-1].headers["Retry-After"] == "1" and "5" in answers[-1].json()["errors"][0]["message"]
        assert client.get("/health").status_code == 200
        time.sleep(0.5)
        assert client.get("/recommend").status_code == 200


def test_a_new_model_takes_over_without_a_lost_request_and_sessions_survive_it_and_a_kill(
    checkpoints: list[Path], recommenders: list[Recommender], tmp_path: Path
):
    current, file = tmp_path / "current", tmp_path / "sessions.db"
    current.symlink_to(checkpoints[0])
    old, new = recommenders
    histories = histories_of(old, 30)
    with serving(current, sessions=file) as service, ThreadPoolExecutor(4) as pool:
        session = service.client.post("/sessions", json={"items": ["50", "181"]}).json()["session"]
        reloaded = threading.Event()

        def ask_until_reloaded(seed: int) -> list[bool]:
            right, models = [], set()
            while not reloaded.is_set() or new.checksum not in models:
                for history in histories:
                    answer = service.client.post("/recommend", json={"histories": [history]}).raise_for_status().json()
                    models.add(answer["model"])
                    model = {old.checksum: old, new.checksum: new}[answer["model"]]
                    right.append(near(answer["results"][0], model.recommend([history])[0]))
            return right

        asking = [pool.submit(ask_until_reloaded, seed) for seed in range(3)]
        current.unlink()
        current.symlink_to(tmp_path)  # no run: the old model stays
        service.process.send_signal(signal.SIGHUP)
        while 'reloads_total{result="failed"} 1' not in service.client.get("/metrics").text:
            time.sleep(0.05)
        current.unlink()
        current.symlink_to(checkpoints[1])
        service.process.send_signal(signal.SIGHUP)
        while service.client.get("/health").json()["checksum"] != new.checksum:
            time.sleep(0.05)
        reloaded.set()
        assert all(all(each.result()) for each in asking)
        grown = service.client.post(f"/sessions/{session}/items", json={"items": ["1"]}).json()
        assert near(grown, new.recommend([["50", "181", "1"]])[0])
        service.process.kill()
    assert file.stat().st_mode & 0o077 == 0
    for checkpoint, model in ((checkpoints[1], new), (checkpoints[0], old)):
        with serving(checkpoint, sessions=file) as service:
            read = service.client.get(f"/sessions/{session}").json()
            assert read["history"] == ["50", "181", "1"] and near(read, model.recommend([read["history"]])[0])
            service.stop_while_answering({"histories": [["50"] * 50] * 90})


def test_sessions_are_bounded_and_expire_and_a_full_disk_loses_none(
    rec: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    sessions = Sessions(Limits(max_sessions=2, session_seconds=60), tmp_path / "s.db")
    first, second = (sessions.create(rec, [item], "skip") for item in ("50", "181"))
    for key in (first, second):
        sessions.get(rec, key)
    sessions.save()
    with refusing("2 sessions"):
        sessions.create(rec, [], "skip")
    sessions._file.execute("PRAGMA max_page_count = 1")  # the disk is full
    sessions.get(rec, second).extend(rec.items[:500])
    with pytest.raises(Refused, match="full") as error:
        sessions.save()
    assert error.value.status == 503 and sessions.get(rec, second).history == ["181"]
    now += 50
    sessions.get(rec, second)
    now += 50
    with refusing("expired"):
        sessions.get(rec, first)
    assert sessions.get(rec, second).history == ["181"] and len(sessions) == 1
    sessions.delete(second)
    sessions._file.execute("PRAGMA query_only = 1")
    with pytest.raises(Refused):
        sessions.save()
    sessions._file.execute("PRAGMA query_only = 0")
    sessions.save()  # what was deleted is deleted as soon as the file can be written
    assert not sessions._file.execute("SELECT 1 FROM sessions").fetchall()


def test_cases_made_from_the_services_own_description_find_no_fault(service: Service, tmp_path: Path):
    line = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.address}/openapi.json", "--no-color"]
    line += [f"--max-examples={REQUESTS // 80}", f"--header=Authorization: Bearer {KEY}", "--seed=1"]
    line += ["--phases=coverage,fuzzing", "--suppress-health-check=all"]
    line += ["--exclude-checks=allow_header_conformance,positive_data_acceptance"]  # one route per method; unknown ids
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_person_types_items_and_appends_one(service: Service, rec: Recommender, browser: Browser):  # noqa: F811
    browser.open(service.address)
    browser.wait("return document.getElementById('model').textContent.includes('Mamba4Rec')")
    type_items = "document.getElementById('{0}').value = '{1}'; document.querySelector('#{2} button').click()"
    browser.run(type_items.format("items", "50 181", "begin"))
    browser.wait("return document.getElementById('message').textContent.includes('key')")
    browser.run(f"document.getElementById('key').value = '{KEY}'; {type_items.format('items', '50 181', 'begin')}")
    rows_of = "[...document.querySelectorAll('#list tr')]"
    shown = f"return {rows_of}.map(row => [1, 2].map(column => row.cells[column].textContent))"
    rows = browser.wait(f"const rows = (() => {{ {shown} }})(); return rows.length && rows")
    assert rows == [[item, rec.titles[item]] for item, _ in rec.recommend([["50", "181"]])[0]]
    browser.run(type_items.format("item", "1", "append"))
    browser.wait("return document.getElementById('history').textContent === '50 181 1'")
    assert browser.run(shown) == [[item, rec.titles[item]] for item, _ in rec.recommend([["50", "181", "1"]])[0]]
    browser.run("document.querySelector('#list button').click()")
    browser.wait("return document.getElementById('history').textContent.startsWith('50 181 1 ')")
    browser.open(f"{service.address}/docs")
    assert browser.wait("return document.querySelectorAll('summary').length") >= 7


def test_mistakes_in_the_command_are_named(
    checkpoints: list[Path], refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_option, text = f"--checkpoint={checkpoints[0]}", tmp_path / "text"
    text.write_text("no database, but a text that is long enough to be read as one" * 100)
    refused("serve", names=["--checkpoint"])
    refused("serve", run_option, "--port=70000", names=["--port", "70000"])
    refused("serve", run_option, "--max_k=0", names=["--max_k", "0"])
    refused("serve", run_option, "--colour=1", names=["--colour"])
    refused("serve", run_option, "--host=nowhere.invalid", "--use_gpu=False", names=["--host", "nowhere.invalid"])
    refused("serve", run_option, "--port=0", f"--sessions={text}", names=["--sessions", str(text)])
    refused("serve", run_option, "--port=0", f"--sessions={tmp_path}/no/s.db", names=["--sessions", "/no/s.db"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("serve", run_option, f"--port={port}", names=["--port", str(port), "in use"])
    for key in ("", "a key", "k\xe4y"):
        monkeypatch.setenv(command.KEY, key)
        refused("serve", run_option, names=[command.KEY])


def test_the_dockerfile_copies_what_is_there_and_runs_the_command_as_a_user():
    root = Path(__file__).parents[2]
    text = re.sub(r"\\\n\s*", "", (root / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    copied = [name for word, rest in lines if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]]
    assert "recbole_sigma" in copied and all((root / name).exists() for name in copied)
    last = dict(lines)
    entry, more = json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])
    assert entry[0] == "recbole-sigma" and entry[1] in cli.COMMANDS and last["USER"] != "root"
    for option in [*entry[2:], *more]:
        assert f"{shlex.split(option)[0].partition('=')[0]}=" in (command.__doc__ or "")
