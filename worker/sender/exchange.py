"""What the sender takes, and what it gives back."""

from dataclasses import dataclass
from typing import Final

MAX_ANSWER_BYTES: Final = 64 * 1024  # of the header lines, and again of the body
KEPT_BODY_BYTES: Final = 8 * 1024


@dataclass(slots=True)
class Outgoing:
    """One request to make.

    `headers` are complete `Name: value` lines in ASCII; libcurl leaves out a line without a value. It adds
    Host and Content-Length, nothing else.
    """

    url: str
    headers: list[str]
    body: bytes
    timeout_ms: int  # the whole of it: from the DNS to the last byte of the answer
    tag: object
    method: str = "POST"


@dataclass(slots=True)
class Outcome:
    """What became of an Outgoing: exactly one for each, whatever happened.

    `status_code` is that of a complete answer, or of one that was cut for its size. An answer that the
    deadline or the receiver cut short has none, though what came of its headers and body is kept.
    """

    tag: object
    started_at: float  # seconds since the epoch
    duration_ms: int
    status_code: int | None
    error_code: str | None  # None: 200 to 299, complete
    error_detail: str | None  # a sentence for the customer; holds no address
    response_headers: list[tuple[str, str]]
    response_body: bytes
    response_truncated: bool
