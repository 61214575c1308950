"""The HTTP service under load, and one recommendation in process: `python benchmarks/serving.py RUN`.

Prints milliseconds (p50, p99) of Recommender.recommend for one user with 50 items on one core, then for concurrency 1
and 64 requests per second and milliseconds of POST /recommend with one history of 50 items. Server and clients share
this machine; CPU time is printed, too, since it depends less on what else runs. The clients are one process, which
writes prepared requests to open connections and checks every answer.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from recbole_sigma import Recommender


def quantiles(seconds: list[float]) -> str:
    return "p50 {:.2f} ms, p99 {:.2f} ms".format(*np.quantile(seconds, [0.5, 0.99]) * 1e3)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far (Linux)."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, bodies: list[bytes], expected: list[float], concurrency: int) -> None:
    """Send each body once. Raises AssertionError for an answer that is wrong or lost."""
    left, seconds = iter(range(len(bodies))), []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            head = "POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            started = time.perf_counter()
            writer.write(f"{head}{len(bodies[number])}\r\n\r\n".encode() + bodies[number])
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            content = json.loads(await reader.readexactly(length))
            seconds.append(time.perf_counter() - started)
            assert answer.startswith(b"http/1.1 200"), content
            assert abs(sum(content["results"][0]["scores"]) - expected[number]) < 1e-3, number
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    rate = len(seconds) / (time.perf_counter() - started)
    assert len(seconds) == len(bodies)
    print(
        f"concurrency {concurrency}: {len(seconds)} requests, {rate:.0f} per second, {quantiles(seconds)}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recommender, random = Recommender.load(args.run, device="cpu"), np.random.default_rng(0)
    histories = [random.choice(recommender.items, 50).tolist() for _ in range(args.requests)]
    seconds, busy = [], []
    for history in histories[:500]:
        started = time.perf_counter(), time.thread_time()
        recommender.recommend([history])
        seconds.append(time.perf_counter() - started[0])
        busy.append(time.thread_time() - started[1])
    print(f"in process: {len(recommender.items)} items, {quantiles(seconds[20:])}", flush=True)
    print(f"of these on the processor: {quantiles(busy[20:])}, fastest {min(busy) * 1e3:.2f} ms", flush=True)
    expected = [sum(score for _, score in best) for best in recommender.recommend(histories)]
    bodies = [json.dumps({"histories": [history]}).encode() for history in histories]
    command = [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", "serve", f"--checkpoint={args.run}"]
    with subprocess.Popen([*command, "--port=0", "--use_gpu=False"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(":")[2])
            for number, concurrency in ((args.requests // 10, 1), (args.requests, 64)):
                before = cpu_seconds(server.pid)
                asyncio.run(load(port, bodies[:number], expected, concurrency))
                print(f"server: {(cpu_seconds(server.pid) - before) / number * 1e3:.2f} ms of CPU time per request")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
