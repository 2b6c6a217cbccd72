"""Every error is a problem of RFC 9457 that tells the client what it can do about it, and nothing about us."""

import re
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from app.api_keys import service as api_keys
from app.core.problems import all_problems
from app.events import service as events
from tests.api import expect
from tests.api.routes import KEYED, PUBLIC, path_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
ROUTES = {*KEYED, *PUBLIC}
CANARY = "canary-secret-word"


def allowed(rule: str) -> set[str]:
    """Give the methods of all rules that the path of this one meets: /v1/events/batch could be an event's."""
    path, methods = path_of(rule), set()
    for method, other in ROUTES:
        pattern = re.sub(r"<(path:)?\w+>", lambda match: ".+" if match[1] else "[^/]+", other)
        if re.fullmatch(pattern, path):
            methods.add(method)
    return methods | ({"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"})


def test_paths_that_lead_nowhere(api):
    for path in (
        *(
            "/nope",
            "/v1",
            "/v1/",
            "/v2/events",
            "/v1/event",
            "/v1/events/a/b",
            "/v1/api-keys/a/revoke/b",
            "/V1/events",
        ),
        *("/docs/x", "/openapi.yaml", "/.env", "/v1/%2e%2e/docs", "/v1/events%00", "/%ff%fe", "/\N{FIRE}"),
        *(
            "/" + "x" * 10_000,
            "/problems/nope",
            "/problems/not_found/x",
            "/problems/%00",
            "/v1/events%2Fbatch%2Fx",
        ),
    ):
        for method in METHODS[:5]:
            expect.problem(api.client.open(path, method=method), *_missing(path, method))
            expect.problem(api.call(method, path), *_missing(path, method))


def _missing(path: str, method: str) -> tuple[int, str]:
    # A page of problems may be absent, and yet only be asked for by GET.
    is_page = path.startswith("/problems/") and path.count("/") == 2
    return (405, "method_not_allowed") if is_page and method != "GET" else (404, "not_found")


def test_methods_that_a_path_does_not_take(api):
    for rule in {rule for _, rule in ROUTES}:
        for method in set(METHODS) - allowed(rule):
            for answer in (
                api.client.open(path_of(rule), method=method),
                api.call(method, path_of(rule), {"a": 1}),
            ):
                expect.problem(answer, 405, "method_not_allowed")
                assert {name.strip() for name in answer.headers["Allow"].split(",")} == allowed(rule)


def test_head_is_get_without_a_body(api):
    for method, rule in ROUTES:
        if method != "GET":
            continue
        with api.get(path_of(rule)) as full, api.call("HEAD", path_of(rule)) as head:
            assert head.status_code == full.status_code
            assert head.data == b""
            assert head.content_type == full.content_type
            assert "X-Request-Id" in head.headers


def test_options_tell_the_methods_to_those_who_have_a_key(api):
    for rule in {rule for _, rule in KEYED}:
        answer = api.call("OPTIONS", path_of(rule))
        assert (answer.status_code, answer.data) == (200, b"")
        assert {name.strip() for name in answer.headers["Allow"].split(",")} == allowed(rule)
        expect.problem(api.client.options(path_of(rule)), 401, "missing_api_key")


def test_every_problem_has_a_page(api):
    for code, known in all_problems().items():
        answer = api.client.get(f"/problems/{code}")
        assert answer.status_code == 200
        assert answer.content_type == "text/plain; charset=utf-8"
        text = answer.get_data(as_text=True)
        assert text.startswith(f"{known.status} {code}\n{known.title}\n\n")
        assert len(text.splitlines()[3]) > 10, code
        assert re.fullmatch(r"[a-z][a-z0-9_]*", code)
        assert 400 <= known.status < 600


def test_problems_of_the_framework_have_pages_too(api):
    answer = api.client.get("/docs", headers={"Range": "bytes=9999999-"})
    problem = expect.problem(answer, 416, "http_416")
    page = api.client.get(problem["type"])
    assert page.status_code == 200
    assert page.get_data(as_text=True).startswith("416 http_416\nRequested Range Not Satisfiable\n\n")
    for code in ("http_", "http_200", "http_999", "http_41", "http_4160", "http_\u0664\u0661\u0666"):
        expect.problem(api.client.get(f"/problems/{code}"), 404, "not_found")


def test_a_request_has_an_id(api):
    ids = {api.get("/v1/events").headers["X-Request-Id"] for _ in range(10)}
    assert len(ids) == 10
    for path in ("/healthz", "/openapi.json", "/docs", "/", "/nope", "/static/docs.js", "/v1/api-keys"):
        with api.client.get(path) as answer:
            assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", answer.headers["X-Request-Id"])


def test_a_sane_request_id_is_taken_over(api):
    for given in ("1", "a" * 64, "4bf92f3577b34da6a3ce929d0e0e4736", "A.b_c-9"):
        answer = api.get("/v1/nope", headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] == given
        assert answer.json["request_id"] == given
    for given in ("", "a" * 65, "a b", "<script>", "a;b", "\xe4", "a,b", '"a"', "{{7*7}}"):
        answer = api.get("/v1/nope", headers={"X-Request-Id": given})
        assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["X-Request-Id"])
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_nothing_of_the_api_is_kept_by_caches(api):
    for method, rule in KEYED:
        for client in (api.call, lambda method, path: api.client.open(path, method=method)):
            answer = client(method, path_of(rule))
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Set-Cookie" not in answer.headers
            assert "Access-Control-Allow-Origin" not in answer.headers


ERRORS = [
    RuntimeError(CANARY),
    KeyError(CANARY),
    IntegrityError(f"SELECT {CANARY}", {"a": CANARY}, Exception(CANARY)),
    RecursionError(CANARY),
    AssertionError(CANARY),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_bug_tells_the_client_nothing_but_the_requests_id(api, monkeypatch, error):
    monkeypatch.setattr(events, "list_events", Mock(side_effect=error))
    with capture_logs() as logs:
        answer = api.get("/v1/events", headers={"X-Request-Id": "the-one"})

    assert expect.problem(answer, 500, "internal_error") == {
        "type": "/problems/internal_error",
        "title": "Internal error",
        "status": 500,
        "detail": "Something went wrong on our side. Tell support the request_id.",
        "code": "internal_error",
        "request_id": "the-one",
    }
    assert CANARY not in answer.get_data(as_text=True) + str(answer.headers)
    (failed,) = [entry for entry in logs if entry["event"] == "request.failed"]
    assert (failed["request_id"], failed["exc_info"]) == ("the-one", error)


def test_a_database_that_cannot_be_reached_is_no_bug_and_says_when_to_come_back(api, monkeypatch):
    for error in (
        OperationalError(f"SELECT {CANARY}", {"a": CANARY}, Exception(CANARY)),
        PoolTimeout(CANARY),
    ):
        monkeypatch.setattr(events, "list_events", Mock(side_effect=error))
        with capture_logs():
            answer = api.get("/v1/events")
        expect.problem(answer, 503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert CANARY not in answer.get_data(as_text=True) + str(answer.headers)


def test_a_bug_leaves_nothing_half_done(api, monkeypatch):
    monkeypatch.setattr(api_keys, "view", Mock(side_effect=KeyError))  # which is called when the key is made
    with capture_logs():
        expect.problem(api.post("/v1/api-keys", {"name": "CI"}), 500, "internal_error")
    monkeypatch.undo()
    assert [key["id"] for key in expect.ok(api.get("/v1/api-keys"))["data"]] == [api.key_id]


def test_a_key_in_a_request_is_not_in_its_log_line(api):
    with capture_logs() as logs:
        api.get(f"/v1/events?key={api.key}")
        api.get(f"/v1/events/{api.key}")
        api.client.get(f"/{api.key}")
    assert [entry["event"] for entry in logs].count("request.done") == 3
    assert api.key not in str(logs)
    assert api.key_id in str(logs)
