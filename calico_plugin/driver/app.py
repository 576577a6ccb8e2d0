"""The Flask application: blueprints of both drivers, and the only place where an error becomes an answer.

Every failure is status 500 with one line under `Err` (the network side) and `Error` (the IPAM side of some releases);
an unknown method is 404, which Docker takes as "not offered". A mistake of ours is logged with its traceback and the
bug marker, and the user is told where to look. Each call logs one line.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable

import structlog
from flask import Blueprint, Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from calico_plugin.deadline import Deadline
from calico_plugin.driver import wire
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.observe.log import bug

# For one whole call: below the 20 s that we promise, and the 30 s after which Docker gives up on a managed plugin.
CALL_SECONDS = 18.0
_MAX_BODY = 4 << 20
_JSON = "application/json"
# Seconds from which a call that went well is worth a line of its own in the log.
_SLOW = 1.0

Handler = Callable[[bytes, Deadline], bytes]


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the plugin protocol: body and deadline in, answer out."""

    name: str
    handle: Handler


def blueprint(name: str, methods: tuple[Method, ...]) -> Blueprint:
    """Routes of one subsystem."""
    made = Blueprint(name, __name__)
    for method in methods:
        made.add_url_rule(f"/{method.name}", method.name.replace(".", "_"), _view(method), methods=["POST"])
    return made


class _NoSessions(SessionInterface):
    """Docker has no cookies: one empty session for all."""

    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._none


class _Answer(Response):
    """A complete answer: Flask need not look for redirects, cookies and streams in it."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        data = self.get_data()
        start_response(self.status, [("Content-Type", _JSON), ("Content-Length", str(len(data)))])
        return [data]


class PluginApp(Flask):
    """Flask without what Docker's calls never use: sessions, hooks, signals, host matching. That is a third of its
    time for a call.
    """

    session_interface = _NoSessions()
    response_class = _Answer

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """By path and method only: what the Host header says depends on Docker's release and may be empty."""
        if request is None:
            return None
        return self.url_map.bind("", path_info=request.path, default_method=request.method)

    def full_dispatch_request(self) -> Response:
        try:
            answer = self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        return self.make_response(answer)


def create_app(*blueprints: Blueprint) -> Flask:
    app = PluginApp("calico-driver", static_folder=None)
    for one in blueprints:
        app.register_blueprint(one)
    app.register_error_handler(HTTPException, _http_error)
    return app


def _view(method: Method) -> Callable[[], Response]:
    """What Flask calls."""
    # Bound once, here: a logger that is looked up at each call costs as much as the rest of a small one.
    log = structlog.get_logger(part="driver", call=method.name).bind()

    def view() -> Response:
        started = time.monotonic()
        try:
            data = method.handle(_body(), Deadline(CALL_SECONDS))
        except CalicoError as error:
            log.warning("refused", error=str(error), ms=_since(started))
            return _Answer(wire.error(str(error)), 500)
        except HTTPException:
            raise
        except Exception as error:
            bug(log, "call failed", ms=_since(started))
            text = f"calico-driver has met a bug of its own ({type(error).__name__}); its log has the details"
            return _Answer(wire.error(text), 500)
        elapsed = time.monotonic() - started
        (log.info if elapsed >= _SLOW else log.debug)("done", ms=round(elapsed * 1000, 1))
        return _Answer(data)

    return view


def _body() -> bytes:
    """Docker always says how long it is. Without Flask's layers of streams, which are for forms and uploads."""
    length = request.content_length or 0
    if length > _MAX_BODY:
        raise InvalidInput("request body", hint=f"{length} bytes are more than any request of Docker has")
    content: bytes = request.environ["wsgi.input"].read(length)
    return content


def _since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _http_error(error: HTTPException) -> Response:
    if error.code == 404:
        text = f"calico-driver does not know {request.path.lstrip('/')}"
    else:
        text = f"{request.method} {request.path}: {error.name}"
    return _Answer(wire.error(text), error.code or 500)
