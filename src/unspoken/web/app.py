"""The lab's application: its page, its interface, and the OpenAI-compatible one, over one engine."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from unspoken import __version__
from unspoken.lm import zoo
from unspoken.web import _lens, _openai, _schema
from unspoken.web._bodies import Ask, Cancel, LensAsk
from unspoken.web._errors import ApiError, JsonResponse, printable
from unspoken.web._history import DamagedRun, History
from unspoken.web._kept import KeptRun, checked
from unspoken.web._original import original_reply
from unspoken.web._prepare import Prepared, prepare_ask
from unspoken.web._refusals import add_refusals
from unspoken.web._runs import (
    KEEP_ALIVE,
    EventStream,
    Session,
    finite,
    raise_failure,
    submit,
    unless_gone,
)
from unspoken.web._security import Guard
from unspoken.web._views import Views

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.web._settings import Settings
    from unspoken.web.jobs import Engine

GLYPHS = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"})
FILES = ("html", "css", "js", "svg", "png")
RunId = Annotated[str, Path(max_length=64)]


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application.

    Args:
        engine: Runs the requests; the application starts it, and closes it at its end.
        settings: Addresses, keys and limits.

    Raises:
        ConfigError: If the folder of kept runs cannot be used.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        # Imports every strategy and tries out its fields: not while requests wait.
        await run_in_threadpool(_schema.describe_all, engine.lm)
        yield
        await asyncio.get_running_loop().run_in_executor(None, engine.close)

    app = FastAPI(
        title="Unspoken",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=JsonResponse,
        redirect_slashes=False,
        responses={status: {"description": text} for status, text in REFUSALS.items()},
    )
    history = None if settings.history is None else History(settings.history)
    lab = Lab(engine, settings, history)
    settings.own_names  # noqa: B018 - looked up now: it may ask other computers
    add_refusals(app, engine.lm, settings)
    _page(app)
    _about(app, lab)
    _running(app, lab)
    _kept(app, lab)
    _openai.add_routes(app, engine, settings, lab.views)
    app.add_middleware(Guard, settings=settings)
    return app


REFUSALS: dict[int | str, str] = {
    400: "Not JSON, or a value of a wrong type",
    401: "The API key is missing or wrong",
    403: "Another host or origin",
    404: "Nothing of this name",
    408: "The body took too long",
    409: "The id was used before",
    413: "The body is too large",
    422: "A value or a name that is not allowed",
    429: "The queue is full; see Retry-After",
    503: "Shutting down",
}


class Lab:
    """What the routes share.

    Attributes:
        engine: Runs the requests.
        settings: Addresses, keys and limits.
        history: The kept runs; None keeps none.
        views: Views of the model by depth.
    """

    def __init__(self, engine: Engine, settings: Settings, history: History | None) -> None:
        self.engine, self.settings, self.history = engine, settings, history
        self.views = Views(engine)

    @property
    def lm(self) -> CausalLM:
        return self.engine.lm

    async def session(self, body: Ask, request: HttpRequest, whole: bool = False) -> Session:
        """A run that waits for its row.

        Args:
            body: What was asked.
            request: Where it came from.
            whole: Whether its steps are wanted when it is over.

        Raises:
            ApiError: With everything that is wrong.
        """
        views = await self.views.of(body.depth)
        client = request.client.host if request.client else "unknown"
        prepared: Prepared = await run_in_threadpool(prepare_ask, body, self.lm, self.settings, client, views)
        (job,) = submit(self.engine, [prepared])
        return Session(job, prepared, self.history, self.settings.heartbeat, whole)

    def kept(self) -> History:
        """The kept runs.

        Raises:
            ApiError: If none are kept.
        """
        if self.history is None:
            raise ApiError(404, "This server keeps no runs.", "Start it with --history DIR.")
        return self.history

    def read(self, run: str) -> KeptRun:
        """A kept run that is known to be whole.

        Raises:
            ApiError: 404 if there is none of this id, 422 if its file is damaged.
        """
        try:
            kept = self.kept().read(run)
        except DamagedRun as error:
            raise ApiError(422, error.message, error.hint, {"run": [error.message]}) from error
        if kept is None:
            raise _no_run(run)
        return checked(kept)


def _no_run(run: str) -> ApiError:
    message = f"There is no run {printable(run, 64)!r}."
    return ApiError(404, message, "GET /api/runs lists them.", {"run": [message]})


def page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, with their types: the only ones that are ever served."""
    folder = resources.files("unspoken.web") / "static"
    if not folder.is_dir():
        return {}
    found = {}
    for item in folder.iterdir():
        if item.is_file() and item.name.rpartition(".")[2] in FILES:
            kind = mimetypes.guess_type(item.name)[0] or "application/octet-stream"
            kind = "text/javascript" if item.name.endswith(".js") else kind
            found[item.name] = (item.read_bytes(), kind)
    return found


def _page(app: FastAPI) -> None:
    files = page_files()

    def file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "There is no such file.")
        content, kind = files[name]
        # Revalidated always: another version of the server may stand here next time.
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return file("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return file(name)


def _about(app: FastAPI, lab: Lab) -> None:
    lm, settings, engine = lab.lm, lab.settings, lab.engine
    name = settings.name or lm.source

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        status = "shutting down" if engine.draining else "ok"
        return {"status": status, "model": name, "waiting": engine.waiting, "running": engine.running}

    @app.get("/api/model-status")
    def model_status() -> dict[str, Any]:
        info = lm.info()
        return {
            "loaded": True,
            "model": info,
            "name": name,
            "dtype": info["dtype"],
            "device": info["device"],
            "eos_ids": sorted(lm.eos_ids),
            "vocab_size": lm.vocab_size,
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": engine.batch_size,
            "history": lab.history is not None,
        }

    @app.get("/api/models")
    def models() -> list[dict[str, Any]]:
        served = {"name": name, "summary": "the model served here", "served": True}
        others = [{"name": n, "summary": zoo.summary(n), "served": False} for n in zoo.names() if n != name]
        return [served, *others]

    @app.get("/api/strategies")
    def strategies() -> list[dict[str, Any]]:
        return _schema.describe_all(lm)

    @app.get("/api/token-text/{token}")
    def token_text(token: Annotated[int, Path(ge=0)]) -> dict[str, Any]:
        if token >= lm.vocab_size:
            raise ApiError(404, f"There is no token {token}: ids go from 0 to {lm.vocab_size - 1}.")
        text = lm.tokens.token_text(token)
        return {"id": token, "text": text, "display": text.translate(GLYPHS)}


def _running(app: FastAPI, lab: Lab) -> None:
    @app.post("/api/stream", response_model=None, responses={200: {"content": {"text/event-stream": {}}}})
    async def stream(body: Ask, request: HttpRequest) -> Response:
        session = await lab.session(body, request)
        return EventStream(_lines(session), [session.job])

    @app.post("/api/generate", response_model=None)
    async def generate(body: Ask, request: HttpRequest) -> Any:
        session = await lab.session(body, request, whole=True)
        generation = await unless_gone(request, [session.job], session.finished())
        if generation is None:
            return Response(status_code=499)
        raise_failure(generation.reason)
        return {
            "id": session.start["id"],
            **session.done,
            "steps": session.steps(),
            "notes": finite(generation.notes),
            **original_reply(session.start, generation, body, lab.lm),
        }

    @app.post("/api/cancel")
    async def cancel(body: Cancel) -> dict[str, bool]:
        return {"cancelled": lab.engine.cancel(body.id)}

    @app.post("/api/cancel/{name}")
    async def cancel_by_path(name: Annotated[str, Path(max_length=64)]) -> dict[str, bool]:
        return {"cancelled": lab.engine.cancel(name)}


async def _lines(session: Session) -> AsyncIterator[bytes]:
    """The messages of a run as server-sent events."""
    messages = session.messages()
    try:
        async for batch in messages:
            if batch is None:
                yield KEEP_ALIVE
            else:
                yield b"".join(format_sse_event(event=name, data_str=line) for name, line in batch)
    finally:
        await messages.aclose()  # type: ignore[attr-defined]


def _kept(app: FastAPI, lab: Lab) -> None:
    @app.get("/api/runs")
    def runs(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=64)] = None,
    ) -> list[dict[str, Any]]:
        return [] if lab.history is None else lab.history.list(limit, before)

    @app.get("/api/run/{run}", response_model=None)
    def run(run: RunId) -> KeptRun:
        return lab.read(run)

    @app.delete("/api/run/{run}")
    def delete(run: RunId) -> dict[str, bool]:
        if not lab.kept().delete(run):
            raise _no_run(run)
        return {"deleted": True}

    @app.post("/api/lens")
    async def lens(body: LensAsk) -> dict[str, Any]:
        kept = await run_in_threadpool(lab.read, body.run)
        view = lab.lm
        if depth := kept["start"].get("depth"):
            view = (await lab.views.of(depth))[depth]
        reading = await run_in_threadpool(_lens.prepare, body, kept, view)
        return await lab.engine.ask(reading)
