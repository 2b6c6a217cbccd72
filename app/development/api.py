"""A client of our own HTTP API, on the loopback."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 10


class ApiRefused(Exception):
    """An answer other than 2xx."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


class Api:
    """Calls with one key, each on a connection of its own: web may be started again between two."""

    def __init__(self, base_url: str, key: str = "") -> None:
        self._address = urlsplit(base_url).netloc
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def status(self, path: str) -> int | None:
        """Give the status of a GET, or None when nobody answers."""
        try:
            return self._send("GET", path, None)[0]
        except (OSError, http.client.HTTPException):
            return None

    def get(self, path: str) -> Any:
        """Give the JSON of an answer; raises `ApiRefused` or OSError."""
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON and give that of the answer; raises `ApiRefused` or OSError."""
        return self._call("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON and give that of the answer; raises `ApiRefused` or OSError."""
        return self._call("PATCH", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        status, content = self._send(method, path, body)
        answer = json.loads(content)
        if not 200 <= status <= 299:  # noqa: PLR2004 - the class of success
            raise ApiRefused(status, str(answer.get("detail")))
        return answer

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, path, json.dumps(body) if body else None, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
