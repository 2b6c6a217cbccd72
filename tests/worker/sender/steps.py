"""What tests of the sender do again and again."""

import re
import time
from typing import Any

from worker.sender import Outcome, Outgoing, Sender

DEADLINE_MS = 1000
DEADLINE_WITH_SLACK = 1.5


def outgoing(url: str, **changes: Any) -> Outgoing:
    fields: dict[str, Any] = {"headers": [], "body": b"{}", "timeout_ms": DEADLINE_MS, "tag": "tag"}
    fields |= changes
    return Outgoing(url=url, **fields)


def finish(sender: Sender, *, within: float = 20.0) -> list[Outcome]:
    """Run until nothing is in flight."""
    outcomes: list[Outcome] = []
    limit = time.monotonic() + within
    while sender.in_flight:
        assert time.monotonic() < limit, f"{sender.in_flight} requests are still in flight"
        outcomes += sender.run(0.5)
    return outcomes


def assert_helps(outcome: Outcome) -> None:
    """Assert that the detail says what happened and what to do, and tells no address and no library."""
    detail = outcome.error_detail or ""
    assert re.fullmatch(r"[A-Z].+\. [A-Z].+\.", detail), detail
    for forbidden in ("127.", "10.0", "::", "192.168", "169.254", "curl", "OpenSSL", "errno"):
        assert forbidden not in detail
