"""The edge of every request: id, authentication, body limit, transaction, idempotency, errors, log line."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, cast

import orjson
import structlog
from flask import Flask, Response, current_app, g, request
from flask.json.provider import JSONProvider
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from app.core import idempotency, json_body, problems
from app.core.actor import Actor
from app.core.errors import AppError, BadRequest, NotFound, Unavailable
from app.core.unit_of_work import UnitOfWork
from app.rest import context, rate_limit
from app.rest.blueprint import DEFAULT_BODY_BYTES, PUBLIC
from app.rest.context import Credential
from app.rest.parser import check_length
from config.logging import redact

log = structlog.get_logger()

Authenticate = Callable[[str], Credential]
NoteUse = Callable[[UnitOfWork, Credential], None]

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_SMALL_BODY_BYTES = 64 * 1024
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class HttpError(AppError):
    """What Werkzeug refuses by itself, as a problem."""

    def __init__(self, error: HTTPException) -> None:
        status = error.code or 500
        self.status = status
        self.code = _HTTP_CODES.get(status, f"http_{status}")
        self.title = error.name
        headers = {"Allow": ", ".join(sorted(error.valid_methods))} if _has_methods(error) else {}  # type: ignore[attr-defined]
        super().__init__(headers=headers)


class MethodNotAllowed(AppError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class OrjsonProvider(JSONProvider):
    """Answers are written by orjson."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Write JSON."""
        del kwargs
        return json_body.dumps(obj).decode()

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Read JSON."""
        del kwargs
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """Make an answer."""
        body = json_body.dumps(self._prepare_response_obj(args, kwargs))
        return Response(body, mimetype="application/json")


class Application(Flask):
    """Flask, with one transaction per request that is committed before the answer leaves."""

    json_provider_class = OrjsonProvider

    def dispatch_request(self) -> Any:
        """Run the view, keep its answer where an idempotency key asks for it, and commit."""
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        if key is None or "credential" not in g:
            answer = super().dispatch_request()
            if "uow" in g:
                g.uow.commit()
            return answer
        return self._dispatch_once(key)

    def _dispatch_once(self, key: str) -> Response:
        if not _PRINTABLE.fullmatch(key):
            raise BadRequest("An Idempotency-Key is 1 to 255 visible ASCII characters.")
        uow, box, key_id = context.uow(), context.resources().secret_box, g.credential.key_id
        claimed = idempotency.claim(uow, box, api_key_id=key_id, key=key, fingerprints=_fingerprints())
        uow.commit()
        if isinstance(claimed, idempotency.StoredAnswer):
            replay = self.response_class(claimed.body, claimed.status_code, mimetype="application/json")
            replay.headers["Idempotent-Replayed"] = "true"
            return replay
        try:
            answer = self.make_response(super().dispatch_request())
            idempotency.keep(
                uow,
                box,
                api_key_id=key_id,
                key=key,
                claimed_at=claimed,
                status_code=answer.status_code,
                body=_without_shown_once(answer),
            )
            uow.commit()
        except BaseException:
            uow.rollback()
            idempotency.release(uow, api_key_id=key_id, key=key, claimed_at=claimed)
            uow.commit()
            raise
        return answer


def install(app: Application, *, authenticate: Authenticate, note_use: NoteUse) -> None:
    """Put the edge around every request of `app`."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        offered = request.headers.get("X-Request-Id", "")
        # It is logged, and kept in the audit log: a key that went into the wrong header must not be.
        usable = _REQUEST_ID.fullmatch(offered) and redact(offered) == offered
        g.request_id = offered if usable else secrets.token_hex(12)
        if request.endpoint is None:
            return
        view: Any = app.view_functions[request.endpoint]
        g.max_body_bytes = getattr(view, "max_body_bytes", DEFAULT_BODY_BYTES)
        # Werkzeug cuts off a body that came without its length; one byte more lets the parser see that.
        request.max_content_length = g.max_body_bytes + 1
        scope = getattr(view, "scope", PUBLIC)
        if scope != PUBLIC:
            _read_and_authenticate(authenticate, scope)
        _refuse_nul()
        check_length(request.content_length or 0)

    @app.after_request
    def finish(response: Response) -> Response:
        context.close_uow()
        credential = g.get("credential")
        if credential is not None and credential.use_is_due:
            try:
                with context.resources().transaction(hurried=True) as uow:
                    note_use(uow, credential)
            except SQLAlchemyError as error:
                # Knowing when a key was used last is not worth failing the request for.
                log.warning("api_key.note_use_failed", error=type(error).__name__)
        if credential is not None:
            rate_limit.describe(response, credential)
        response.headers["X-Request-Id"] = g.request_id
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        log.info(
            "request.done",
            method=request.method,
            route=str(request.url_rule) if request.url_rule else None,
            status=response.status_code,
            duration_ms=round((time.perf_counter() - g.started) * 1000, 1),
            request_id=g.request_id,
            workspace_id=credential.workspace_id if credential else None,
            key_id=credential.key_id if credential else None,
        )
        return response

    @app.teardown_request
    def abandon(_error: BaseException | None) -> None:
        context.close_uow()

    app.register_error_handler(AppError, _problem)
    app.register_error_handler(HTTPException, _http_problem)
    for unreachable in (OperationalError, InterfaceError, PoolTimeout):
        app.register_error_handler(unreachable, _unavailable)
    app.register_error_handler(Exception, _bug)


def _refuse_nul() -> None:
    """PostgreSQL's text cannot hold it, so nothing can be named or found by it."""
    if "\0" in request.path:
        raise NotFound
    if b"%00" in request.query_string:
        raise BadRequest("The query has a NUL character (%00).")


def _read_and_authenticate(authenticate: Authenticate, scope: str) -> None:
    """Find out who asks, and count it.

    No transaction is open while a body or Redis's answer is on its way: on SQLite it would hold up all writers.
    What is small is read before the key is looked at; what is large after it was found good, in its own transaction.
    """
    length = request.content_length
    small = length is not None and length <= _SMALL_BODY_BYTES
    if small and length:
        request.get_data(cache=True)
    g.credential = authenticate(scope)
    context.act_as(Actor("api_key", g.credential.key_id, request.remote_addr, g.request_id))
    if context.uow().holds_locks or (not small and request.method not in context.READING):
        context.close_uow()
    rate_limit.spend(g.credential)


def _problem(error: AppError) -> Response:
    response = Response(
        orjson.dumps(problems.problem(error, g.get("request_id"))),
        status=error.status,
        mimetype=problems.CONTENT_TYPE,
    )
    response.headers.update(error.headers)
    return response


def _http_problem(error: HTTPException) -> Response:
    if error.code is not None and error.code < 400:  # noqa: PLR2004 - a redirect is no error
        return cast(Response, error.get_response())
    return _problem(HttpError(error))


def _unavailable(error: SQLAlchemyError) -> Response:
    log.error("request.database_unavailable", request_id=g.get("request_id"), error=type(error).__name__)
    return _problem(Unavailable("Try again in a moment.", headers={"Retry-After": "1"}))


def _bug(error: Exception) -> Response:
    # The client is told nothing but the request's id; the log has the rest.
    log.error("request.failed", request_id=g.get("request_id"), exc_info=error)
    return _problem(AppError("Something went wrong on our side. Tell support the request_id."))


def _has_methods(error: HTTPException) -> bool:
    return bool(getattr(error, "valid_methods", None))


def _fingerprints() -> list[bytes]:
    """Give keyed hashes of the request, under every live pepper: a plain one would let a secret in it be guessed."""
    digest = hashlib.sha256(
        f"{request.method} {request.full_path}\n".encode() + request.get_data(cache=True)
    ).hexdigest()
    return context.resources().key_hash.candidates(f"request {digest}")


def _without_shown_once(answer: Response) -> str:
    view: Any = current_app.view_functions[request.endpoint or ""]
    text = answer.get_data(as_text=True)
    shown_once = getattr(view, "shown_once", None)
    if shown_once is None:
        return text
    body = orjson.loads(text)
    body.pop(shown_once, None)
    return orjson.dumps(body).decode()
