"""The one thread that computes: it takes all requests that wait and answers them together."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from recbole_sigma.inference.recommender import OnUnknown, Recommender
from recbole_sigma.inference.serve.sessions import Sessions

MAX_TOGETHER = 256  # requests

Action = Callable[[Recommender, Sessions], Any]


class How(NamedTuple):
    """What is wanted for histories. Requests that agree in it are answered by one call."""

    k: int
    exclude_seen: bool
    candidates: tuple[str, ...] | None
    on_unknown: OnUnknown


@dataclass
class _Request:
    """Histories and how to answer them, or an action, and where the result goes."""

    future: asyncio.Future[Any]
    work: tuple[list[list[str]], How] | Action
    result: Any = None  # or an exception


class Worker(threading.Thread):
    """Owns the recommender and the sessions; nothing else touches them.

    `observe` is called with the number of requests of each batch.
    """

    def __init__(self, recommender: Recommender, sessions: Sessions, threads: int, observe: Callable[[int], None]):
        super().__init__(name="model", daemon=True)
        self.recommender = recommender
        self.sessions = sessions
        self._threads = threads
        self._observe = observe
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()

    async def ask(self, work: tuple[list[list[str]], How] | Action) -> Any:
        """The lists for histories, as they are sent, or what an action returns. Raises what went wrong."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put(_Request(future, work))
        return await future

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        self._queue.put(None)
        self.join()
        self.sessions.close()

    def swap(self, recommender: Recommender) -> None:
        """Answer with another model from now on. An action: what was asked before still gets the old model.

        Raises Refused, and nothing is changed, if the sessions of the old model cannot be saved.
        """
        self.sessions.save()
        self.sessions.leave_model()
        self.recommender = recommender

    def run(self) -> None:
        torch.set_num_threads(self._threads)
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            taken += [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_TOGETHER - 1))]
            stopping = None in taken
            if batch := [each for each in taken if each is not None]:
                self._observe(len(batch))
                self._answer(batch)
                batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch)

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Actions in their order, and histories together; the sessions' file is written once."""
        groups: dict[How, list[_Request]] = {}
        actions: list[_Request] = []
        for each in batch:
            if isinstance(each.work, tuple):
                groups.setdefault(each.work[1], []).append(each)
            else:
                actions.append(each)
                try:
                    each.result = each.work(self.recommender, self.sessions)
                except Exception as error:
                    each.result = error
        for how, group in groups.items():
            self._recommend(group, how)
        try:
            self.sessions.save()
        except Exception as error:
            for each in actions:
                each.result = error

    def _recommend(self, group: list[_Request], how: How) -> None:
        """Answer histories together; if that fails, each request by itself, so that only the wrong ones get errors."""
        rec, asked = self.recommender, [each.work[0] for each in group]  # type: ignore[index]
        try:
            lists = rec.recommend([history for histories in asked for history in histories], *how)
        except Exception as error:
            group[0].result = error
            for each in group if len(group) > 1 else ():
                self._recommend([each], how)
            return
        popular, start = {*lists.popular}, 0
        for each, histories in zip(group, asked, strict=True):
            each.result = {"model": rec.checksum, "results": []}
            for number, history in enumerate(histories, start):
                unknown = sum(not rec.number(item) for item in history)
                each.result["results"].append(listed(rec, lists[number], unknown, number in popular))
            start += len(histories)


def listed(recommender: Recommender, best: list[tuple[str, float]], unknown: int, popular: bool) -> dict[str, Any]:
    """A list as it is sent: items, scores and, where the model has them, titles."""
    items, titles = [item for item, _ in best], recommender.titles
    answer = {"items": items, "scores": [score for _, score in best], "unknown": unknown, "popular": popular}
    return answer | ({"titles": [titles.get(item) for item in items]} if titles else {})


def _deliver(batch: Sequence[_Request]) -> None:
    """In the event loop: hand the results to the requests that still wait; clients may have gone."""
    for each in batch:
        if each.future.done():
            continue
        if isinstance(each.result, Exception):
            each.future.set_exception(each.result)
        else:
            each.future.set_result(each.result)
