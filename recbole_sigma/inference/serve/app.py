"""The service's routes: what is asked, checked by pydantic, and what is answered."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from starlette.exceptions import HTTPException

from recbole_sigma import __version__
from recbole_sigma.errors import UserError
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.inference.serve.limits import Limits, Refused, errors
from recbole_sigma.inference.serve.sessions import Sessions
from recbole_sigma.inference.serve.worker import How, Worker, listed

PAGES = {"/": "page.html", "/docs": "docs.html"}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
Item = Annotated[
    str,
    BeforeValidator(lambda item: str(item) if type(item) is int else item),
    Field(strict=True, max_length=1000),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 1000}, {"type": "integer"}]}),
]


class Answer(BaseModel):
    """A list, best item first."""

    items: list[str]
    scores: list[float] = Field(description="The model's scores; counts in training where `popular`")
    titles: list[str | None] | None = Field(None, description="Where the data of the run has titles")
    unknown: int = Field(description="Item ids that the model does not know; they were skipped")
    popular: bool = Field(description="No item of the history is known: the most popular items of training")


class Answers(BaseModel):
    """A list per history."""

    results: list[Answer]
    model: str = Field(description="Checksum of the model")


class SessionAnswer(Answer):
    """The list after a session's newest item."""

    session: str
    length: int = Field(description="Items of the session")
    history: list[str] | None = Field(None, description="Oldest first; of GET alone")


class Problem(BaseModel):
    """One thing that is wrong."""

    field: str = Field(description="Its name in the request, such as histories.0.2; empty if it is none")
    message: str


class Problems(BaseModel):
    """An error."""

    errors: list[Problem]


class Health(BaseModel):
    """The model that answers now."""

    status: str
    model: str
    checksum: str
    items: int


def create_app(worker: Worker, limits: Limits, registry: CollectorRegistry, with_key: bool) -> FastAPI:
    """The application; `guard.Guard` goes around it."""
    app = FastAPI(title="recbole-sigma", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    key = [Security(HTTPBearer(auto_error=False, description="RECBOLE_SIGMA_API_KEY"))] if with_key else []
    codes = (400, 401, 404, 408, 413, 422, 429, 503)
    guarded = APIRouter(dependencies=key, responses={code: {"model": Problems} for code in codes})
    _add_routes(guarded, worker, limits)

    @guarded.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/health", response_model=Health)
    async def health() -> Any:
        """The process lives, and which model answers."""
        rec = worker.recommender
        return {"status": "ok", "model": rec.config.model, "checksum": rec.checksum, "items": len(rec.items)}

    @app.get("/ready", response_model=Health, responses={503: {"model": Problems}})
    async def ready() -> Any:
        """The model has answered just now."""
        await worker.ask(lambda *_: None)
        return await health()

    for path, name in PAGES.items():
        content = (Path(__file__).parent / "pages" / name).read_bytes()
        page = HTMLResponse(content, headers=PAGE_HEADERS)
        app.add_api_route(path, lambda page=page: page, include_in_schema=False, response_model=None)
    app.include_router(guarded)
    for kind in (RequestValidationError, HTTPException, UserError, Exception):
        app.add_exception_handler(kind, _refusal)
    return app


async def _refusal(_: Any, error: Exception) -> Response:
    """The answer to what went wrong."""
    if isinstance(error, RequestValidationError):
        problems = [(".".join(map(str, each["loc"][1:])), each["msg"]) for each in error.errors()[:10]]
        return JSONResponse(errors(*problems), 422)
    if isinstance(error, HTTPException):
        return JSONResponse(errors(("", str(error.detail))), error.status_code, error.headers)
    if isinstance(error, UserError):
        refused = error if isinstance(error, Refused) else Refused(422, str(error), "items")
        return JSONResponse(errors((refused.field, str(refused))), refused.status)
    return JSONResponse(errors(("", "the server failed; its log says why")), 500)


def _add_routes(routes: APIRouter, worker: Worker, limits: Limits) -> None:
    """/recommend and /sessions, whose descriptions name the limits."""
    History = Annotated[list[Item], Field(max_length=limits.max_history)]
    K = Annotated[int, Field(ge=1, le=limits.max_k)]
    usual = min(10, limits.max_k)

    class Wanted(BaseModel, extra="forbid"):
        k: K = Field(usual, strict=True)
        exclude_seen: bool = Field(True, strict=True, description="Leave the items of the history out of its list")
        on_unknown: Literal["skip", "error"] = Field("skip", description="error: refuse unknown item ids")

    class Histories(Wanted):
        """Histories of any users, oldest item first, and what is wanted for each."""

        histories: list[History] = Field(min_length=1, max_length=limits.max_histories, examples=[[["A", "B"]]])
        candidates: History | None = Field(None, description="The only items that may be recommended")

    class Items(Wanted):
        """Items of a session, oldest first, and the list that is wanted after them."""

        items: History = Field([], examples=[["A", "B"]])

    @routes.post("/recommend", response_model=Answers, response_model_exclude_none=True)
    async def recommend(asked: Histories) -> Any:
        """The k best items for each history."""
        candidates = None if asked.candidates is None else tuple(asked.candidates)
        try:
            how = How(asked.k, asked.exclude_seen, candidates, asked.on_unknown)
            return await worker.ask((asked.histories, how))
        except UserError as error:
            raise Refused(422, str(error), "histories") from None

    def answer(rec: Recommender, sessions: Sessions, key: str, k: int, exclude_seen: bool, unknown: int = 0) -> Any:
        session = sessions.get(rec, key)
        best = listed(rec, session.top_k(k, exclude_seen), unknown, not len(session))
        return best | {"session": key, "length": len(session)}

    @routes.post("/sessions", response_model=SessionAnswer, response_model_exclude_none=True, status_code=201)
    async def create(asked: Items) -> Any:
        """Begin a session, with or without items."""

        def action(rec: Recommender, sessions: Sessions) -> Any:
            key = sessions.create(rec, asked.items, asked.on_unknown)
            try:
                unknown = len(asked.items) - len(sessions.get(rec, key))
                return answer(rec, sessions, key, asked.k, asked.exclude_seen, unknown)
            except UserError:  # the client does not learn its id
                sessions.delete(key)
                raise

        return await worker.ask(action)

    @routes.post("/sessions/{session}/items", response_model=SessionAnswer, response_model_exclude_none=True)
    async def append(session: str, asked: Items) -> Any:
        """Append a session's newest items."""

        def action(rec: Recommender, sessions: Sessions) -> Any:
            own = sessions.get(rec, session)
            if len(own) + len(asked.items) > limits.max_history:
                raise Refused(422, f"a session has at most {limits.max_history} items, this one {len(own)}", "items")
            unknown = own.extend(asked.items, asked.on_unknown)
            return answer(rec, sessions, session, asked.k, asked.exclude_seen, unknown)

        return await worker.ask(action)

    @routes.get("/sessions/{session}", response_model=SessionAnswer, response_model_exclude_none=True)
    async def read(session: str, k: K = usual, exclude_seen: bool = True) -> Any:
        """A session's items and its list."""

        def action(rec: Recommender, sessions: Sessions) -> Any:
            return answer(rec, sessions, session, k, exclude_seen) | {"history": sessions.get(rec, session).history}

        return await worker.ask(action)

    @routes.delete("/sessions/{session}", status_code=204)
    async def delete(session: str) -> None:
        """Forget a session."""

        def action(rec: Recommender, sessions: Sessions) -> None:
            sessions.get(rec, session)
            sessions.delete(session)

        await worker.ask(action)
