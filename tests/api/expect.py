"""What the tests of the API say about answers."""

from typing import Any

from werkzeug.test import TestResponse


def problem(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """Assert that this is the whole of a problem with this status and code, and give it."""
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = answer.json
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"] == f"/problems/{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert set(body) <= {"type", "title", "status", "detail", "code", "request_id", "errors"}
    return body


def invalid(answer: TestResponse, *pointers: str, code: str = "invalid_request") -> list[dict[str, str]]:
    """Assert a 422 that names these fields and no other, and give its `errors`."""
    errors: list[dict[str, str]] = problem(answer, 422, code)["errors"]
    assert [error["pointer"] for error in errors] == list(pointers), errors
    assert all(set(error) == {"pointer", "code", "detail"} and all(error["detail"]) for error in errors)
    return errors
