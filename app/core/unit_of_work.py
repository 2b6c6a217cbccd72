"""One transaction, and the doorbells that are rung once it is committed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.core.actor import SYSTEM
from app.core.crypto import KeyedHash, SecretBox
from app.core.database import Database
from app.core.doorbell import CeleryDoorbell, Doorbell
from app.core.egress_policy import EgressPolicy, parse_dev_origin
from app.core.rate_limit import FailureLimiter, RequestCounter
from config.settings import Settings
from config.wire import TaskName


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process is made with, once: nothing in it survives a fork."""

    settings: Settings
    database: Database
    doorbell: Doorbell
    secret_box: SecretBox
    key_hash: KeyedHash
    egress_policy: EgressPolicy
    request_counter: RequestCounter
    failed_keys: FailureLimiter
    waiting_tests: BoundedSemaphore

    @contextmanager
    def transaction(self, *, write: bool = True, hurried: bool = False) -> Iterator["UnitOfWork"]:
        """Run a block as one transaction: committed at its end, rolled back when it raises.

        `hurried` is for what is not worth waiting for: on SQLite it fails when others write for longer than an instant.
        """
        uow = UnitOfWork(self, write=write, hurried=hurried)
        try:
            yield uow
            uow.commit()
        finally:
            uow.close()

    def close(self) -> None:
        """Close every connection."""
        self.database.dispose()


def open_resources(settings: Settings, *, doorbell: Doorbell | None = None) -> Resources:
    """Make the resources of a process."""
    return Resources(
        settings=settings,
        database=Database(settings.database_url, pool_size=settings.web_threads),
        doorbell=doorbell or CeleryDoorbell(settings),
        secret_box=SecretBox(settings.encryption_keys),
        key_hash=KeyedHash(settings.encryption_keys, "api key"),
        egress_policy=EgressPolicy(
            allow_cidrs=settings.egress_allow_cidrs,
            deny_cidrs=settings.egress_deny_cidrs,
            dev_origins=frozenset(parse_dev_origin(origin) for origin in settings.dev_origins),
        ),
        request_counter=RequestCounter(settings),
        failed_keys=FailureLimiter(settings.failed_key_limit),
        # A request that sends a test keeps its thread until the test has ended: half of them stay for all others.
        waiting_tests=BoundedSemaphore(max(1, settings.web_threads // 2)),
    )


class UnitOfWork:
    """What a service works with: one transaction, and `ring` for what is to happen after its commit."""

    def __init__(
        self, resources: Resources, *, write: bool = True, one_write: bool = False, hurried: bool = False
    ) -> None:
        self.resources = resources
        self.actor = SYSTEM  # whoever opens the transaction says who is behind it
        self.is_sqlite = resources.database.is_sqlite
        self._bind = resources.database.bind(write=write, one_write=one_write, hurried=hurried)
        # Others may wait for it to end. On PostgreSQL what only reads, or writes once, has no transaction at all.
        self.holds_locks = write and (self.is_sqlite or not one_write)
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._rings: dict[tuple[TaskName, float], None] = {}

    @property
    def connection(self) -> Connection:
        """The transaction for statements; the hot paths use it, since a session costs as much as a query."""
        if self._connection is None:
            self._connection = self._bind.connect()
        return self._connection

    @property
    def session(self) -> Session:
        """The same transaction for objects."""
        if self._session is None:
            self._session = Session(
                self.connection,
                join_transaction_mode="control_fully",
                expire_on_commit=False,
                autoflush=False,
            )
        return self._session

    def ring(self, task: TaskName, *, countdown: float = 0) -> None:
        """Wake a worker for `task` after the commit, `countdown` seconds later; a rollback forgets it."""
        self._rings[task, countdown] = None

    def commit(self) -> None:
        """Commit, then ring. A broker that is down changes nothing: the sweep finds the work."""
        if self._session is not None:
            self._session.commit()
        if self._connection is not None:
            self._connection.commit()
        rings, self._rings = self._rings, {}
        for task, countdown in rings:
            self.resources.doorbell.ring(task, countdown=countdown)

    def rollback(self) -> None:
        """Undo what is not committed; the transaction can be used again."""
        self._rings = {}
        if self._session is not None:
            self._session.rollback()
        if self._connection is not None:
            self._connection.rollback()

    def close(self) -> None:
        """Roll back what is not committed and give the connection back; what is done afterwards takes another."""
        self._rings = {}
        session, connection = self._session, self._connection
        self._session = self._connection = None
        if session is not None:
            session.close()
        if connection is not None:
            connection.close()
