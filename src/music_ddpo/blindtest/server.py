"""The page of the test, on localhost: nothing that it sends tells which system is behind A and which behind B."""

from __future__ import annotations

import hmac
import io
import json
import secrets
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import librosa
import soundfile
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from music_ddpo.blindtest.pairs import Plan, Presentation, folder_of
from music_ddpo.blindtest.votes import Answer, Box, Vote
from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.measuring.features import SAMPLE_RATE, loudness
from music_ddpo.reporting.players import gain_to_target

HERE = Path(__file__).parent
HEARD = 3.0  # seconds of each clip, or the whole clip if it is shorter, before a vote
LARGEST = 4096  # bytes of a request's body
LONGEST_NAME = 40
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src data:; media-src blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(plan: Plan, box: Box, hosts: list[str], token: str | None = None) -> Starlette:
    """The application.

    Parameters
    ----------
    hosts
        The names under which it answers; others are refused, so that no page on the web can read it.
    token
        If given, every request must have it, as the parameter `token` or as the cookie that the first one sets.
    """
    sessions: dict[str, str] = {}  # key: rater
    sent: set[tuple[str, int, str]] = set()  # rater, number and side of each clip that was sent

    def rater_of(content: dict[str, Any]) -> str:
        rater = sessions.get(str(content.get("session")))
        if rater is None:
            raise _RefusedError(409, "this session has ended; load the page again")
        return rater

    def state(rater: str) -> dict[str, Any]:
        shown = plan.presentations(rater)
        done = box.of(rater)
        number = next((i for i in range(len(shown)) if i not in done), None)
        told: dict[str, Any] = {
            "done": len(done),
            "all": len(shown),
            "heard": HEARD,
            "number": number,
            "latest": max(done, default=None),
        }
        if number is not None:
            pair = shown[number].pair
            told["question"] = plan.question.format(emotion=pair.emotion, instrument=pair.instrument)
        return told

    async def start(request: Request) -> Response:
        rater = (await _body(request)).get("rater")
        if not isinstance(rater, str) or not 0 < len(rater.strip()) <= LONGEST_NAME or not rater.isprintable():
            raise _RefusedError(400, f"a name or code of 1 to {LONGEST_NAME} characters is needed")
        key = secrets.token_urlsafe(16)
        sessions[key] = rater.strip()
        return _json({"session": key} | state(rater.strip()))

    async def clip(request: Request) -> Response:
        rater = rater_of(request.path_params)
        shown = plan.presentations(rater)
        number = request.path_params["number"]
        if number >= len(shown) or number in box.of(rater):
            raise _RefusedError(404, "there is no such clip")
        side = {"a": shown[number].a, "b": shown[number].b}.get(request.path_params["side"])
        if side is None:
            raise _RefusedError(404, "there is no such clip")
        content = matched(str(folder_of(side) / shown[number].pair.clip))
        sent.add((rater, number, request.path_params["side"]))
        return Response(content, media_type="audio/wav", headers=HEADERS)

    async def vote(request: Request) -> Response:
        content = await _body(request)
        rater = rater_of(content)
        shown = plan.presentations(rater)
        number, answer = content.get("number"), cast(Answer, content.get("answer"))
        if type(number) is not int or not 0 <= number < len(shown) or answer not in get_args(Answer):
            raise _RefusedError(400, "the vote is incomplete")
        if number in box.of(rater):  # the reply to it was lost
            return _json(state(rater))
        if number != state(rater)["number"] or not {(rater, number, side) for side in "ab"} <= sent:
            raise _RefusedError(400, "this pair is not the next one, or was not heard")
        needed = min(HEARD, _seconds(shown[number]))
        heard = content.get("heard")
        if not isinstance(heard, list) or len(heard) != 2 or not all(_number(x) >= needed - 0.05 for x in heard):
            raise _RefusedError(400, f"listen to both for {needed:g} s first")
        box.add(_vote(rater, number, shown[number], answer, max(0.0, _number(content.get("seconds")))))
        return _json(state(rater))

    async def undo(request: Request) -> Response:
        content = await _body(request)
        rater, number = rater_of(content), content.get("number")
        if type(number) is not int:
            raise _RefusedError(400, "the vote to take back is not named")
        box.undo(rater, number)
        return _json(state(rater))

    async def page(request: Request) -> Response:
        response = FileResponse(HERE / "page.html", headers=HEADERS)
        if token:
            response.set_cookie("token", token, httponly=True, samesite="strict")
        return response

    def asset(name: str) -> Callable[[Request], Any]:
        async def send(request: Request) -> Response:
            return FileResponse(HERE / name, headers=HEADERS)

        return send

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/page.js", asset("page.js")),
            Route("/page.css", asset("page.css")),
            Route("/start", start, methods=["POST"]),
            Route("/vote", vote, methods=["POST"]),
            Route("/undo", undo, methods=["POST"]),
            Route("/clip/{session:str}/{number:int}/{side:str}", clip),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_Guard, token=token)],
        exception_handlers={_RefusedError: _refuse, UserError: _broken, Exception: _broken},
    )
    return app


class _RefusedError(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)
    return JSONResponse({"error": f"{error}."}, error.status, HEADERS)


async def _broken(request: Request, error: Exception) -> Response:
    """Only the program's own terminal says what it is: the page must show no path."""
    print(f"Error: {error}", file=sys.stderr, flush=True)
    told = "the test's program has a problem, which it names in its terminal; your votes are stored."
    return JSONResponse({"error": told}, 500, HEADERS)


class _Guard:
    """Refuses requests without the token, and requests that another page makes."""

    def __init__(self, app: Any, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            given = request.query_params.get("token") or request.cookies.get("token") or ""
            origin = request.headers.get("origin")
            if self.token and not hmac.compare_digest(given.encode(), self.token.encode()):
                return await JSONResponse({"error": "the token is missing."}, 403, HEADERS)(scope, receive, send)
            if origin is not None and origin.split("://")[-1] != request.headers.get("host"):
                return await JSONResponse({"error": "requests of other pages are refused."}, 403, HEADERS)(
                    scope, receive, send
                )
        await self.app(scope, receive, send)


async def _body(request: Request) -> dict[str, Any]:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise _RefusedError(413, "the request is too large")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _RefusedError(400, "the request is not JSON")
    return found


def _json(content: dict[str, Any]) -> Response:
    return JSONResponse(content, headers=HEADERS)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1e6 else -1.0


def _vote(rater: str, number: int, shown: Presentation, answer: Answer, seconds: float) -> Vote:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    pair = shown.pair
    return Vote(
        rater, number, pair.number, pair.clip, pair.emotion, shown.a, shown.b, answer, shown.repeated,
        round(seconds, 1), now,
    )  # fmt: skip


def _seconds(shown: Presentation) -> float:
    return min(soundfile.info(folder_of(system) / shown.pair.clip).duration for system in (shown.a, shown.b))


@lru_cache(maxsize=64)
def matched(path: str) -> bytes:
    """A clip at the loudness `TARGET` as a WAV file; clips of the same length have the same size.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    waveform, sample_rate = audio.read(path)
    sound = waveform.numpy()
    heard = sound if sample_rate == SAMPLE_RATE else librosa.resample(sound, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    content = io.BytesIO()
    gain = gain_to_target(sound, loudness(heard))
    soundfile.write(content, sound * 10 ** (gain / 20), sample_rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def bind(host: str, port: int) -> socket.socket:
    """The socket to serve on; `UserError` if the address is not this machine's, or the port is in use."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port}: cannot be used ({reason}); choose another.") from None


def serve(app: Starlette, at: socket.socket) -> None:
    """Serves until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", server_header=False, date_header=False)
    uvicorn.Server(config).run(sockets=[at])
