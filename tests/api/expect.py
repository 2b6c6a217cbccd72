"""What the tests of the API say about answers."""

from typing import Any

from werkzeug.test import TestResponse


def ok(answer: TestResponse, status: int = 200) -> Any:
    """Assert a JSON answer with this status, and give its body."""
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json


def problem(answer: TestResponse, status: int, code: str) -> Any:
    """Assert that this is the whole of a problem with this status and code, and give it."""
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body: Any = answer.json
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"] == f"/problems/{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert set(body) <= {"type", "title", "status", "detail", "code", "request_id", "errors"}
    return body


def invalid(answer: TestResponse, *pointers: str, code: str = "invalid_request") -> Any:
    """Assert a 422 that names these fields and no other, and give its `errors`."""
    errors = problem(answer, 422, code)["errors"]
    assert {error["pointer"] for error in errors} == set(pointers), errors
    assert all(set(error) == {"pointer", "code", "detail"} and all(error["detail"]) for error in errors)
    return errors
