"""What a request works with: the process's resources, its transaction, its credential."""

from typing import Protocol, cast

from flask import current_app, g, request

from app.core.actor import SYSTEM, Actor
from app.core.unit_of_work import Resources, UnitOfWork

EXTENSION = "botbat"
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Credential(Protocol):
    """Who is asking, as far as routes need it."""

    @property
    def key_id(self) -> str:
        """The API key's id."""

    @property
    def workspace_id(self) -> str:
        """Whose objects the request sees."""

    @property
    def rate_limit(self) -> int:
        """How many requests a second the key may make."""

    @property
    def use_is_due(self) -> bool:
        """Whether this use has to be noted."""

    def allows(self, scope: str) -> bool:
        """Tell whether a scope is granted."""


def resources() -> Resources:
    """Give the resources of this process."""
    return cast(Resources, current_app.extensions[EXTENSION])


def uow() -> UnitOfWork:
    """Give the request's transaction; the first call opens it, the edge commits it."""
    if "uow" not in g:
        view = current_app.view_functions.get(request.endpoint or "")
        # An idempotency key is kept in the same transaction, which makes two writes.
        one_write = getattr(view, "one_write", False) and "Idempotency-Key" not in request.headers
        write = request.method not in READING or getattr(view, "writes", False)
        g.uow = UnitOfWork(resources(), write=write, one_write=one_write)
        g.uow.actor = g.get("actor", SYSTEM)
    return cast(UnitOfWork, g.uow)


def act_as(actor: Actor) -> None:
    """Say who is behind the request: its transaction is theirs, and so is one opened anew."""
    g.actor = actor
    uow().actor = actor


def workspace_id() -> str:
    """Give the workspace that the request's key belongs to."""
    return cast(Credential, g.credential).workspace_id


def close_uow() -> None:
    """Roll back what is not committed; nothing happens when no transaction was opened."""
    opened = g.pop("uow", None)
    if opened is not None:
        opened.close()
