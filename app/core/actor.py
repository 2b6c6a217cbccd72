"""Who makes a change, and from where, as far as the process that makes it knows."""

from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["api_key", "user", "cli", "beat", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is behind a transaction. Only keys and users have an id, only requests an address and an id of their own."""

    kind: ActorKind
    id: str | None = None
    address: str | None = None
    request_id: str | None = None


SYSTEM = Actor("system")
