"""What the built-in receiver has received: the last requests, in memory, and whose secrets it knows."""

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.core.clock import now
from app.development.verification import verify

KEPT = 200


@dataclass(frozen=True, slots=True)
class Received:
    """One request. `status` is what was answered; None for one that was left hanging."""

    received_at: str
    path: str
    headers: dict[str, str]
    body: str
    verified: bool
    verified_by: str | None
    reason: str | None
    event: str | None
    delivery: str | None
    status: int | None


class Inbox:
    """The last requests, newest first, each judged when it comes in, and again once more secrets are known."""

    def __init__(self, secrets_file: Path) -> None:
        self._secrets_file = secrets_file
        self._secrets: dict[str, str] = {}
        self._secrets_state: tuple[int, int] | None = None
        self._kept: deque[tuple[Received, bytes, float]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def keep(self, path: str, headers: Mapping[str, str], body: bytes, status: int | None) -> Received:
        """Judge and keep a request. `headers` has lower-case names."""
        moment = time.time()
        verdict = verify(self._known_secrets(), headers, body, at=moment)
        received = Received(
            received_at=now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            path=path,
            headers=dict(headers),
            body=body.decode(errors="replace"),
            verified=verdict.verified,
            verified_by=verdict.endpoint_id,
            reason=verdict.reason,
            event=headers.get("x-botbat-event"),
            delivery=headers.get("x-botbat-delivery"),
            status=status,
        )
        with self._lock:
            self._kept.appendleft((received, body, moment))
        return received

    def requests(self) -> list[Received]:
        """Give what is kept. An endpoint's first delivery can come before its secret is told."""
        with self._lock:
            secrets = self._known_secrets()
            for index, (received, body, moment) in enumerate(self._kept):
                verdict = (
                    verify(secrets, received.headers, body, at=moment) if not received.verified else None
                )
                if verdict and verdict.verified:
                    judged = replace(received, verified=True, verified_by=verdict.endpoint_id, reason=None)
                    self._kept[index] = (judged, body, moment)
            return [received for received, _, _ in self._kept]

    def as_json(self) -> dict[str, Any]:
        """Give what is kept, as `/requests` shows it."""
        return {"data": [asdict(received) for received in self.requests()]}

    def empty(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def _known_secrets(self) -> dict[str, str]:
        # The file is replaced as a whole, so a new inode or time means new content.
        try:
            stat = self._secrets_file.stat()
            state = (stat.st_mtime_ns, stat.st_ino)
            if state != self._secrets_state:
                self._secrets = json.loads(self._secrets_file.read_text())
                self._secrets_state = state
        except (OSError, ValueError):
            self._secrets, self._secrets_state = {}, None
        return self._secrets
