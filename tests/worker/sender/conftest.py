"""Senders that are closed after the test."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.core.egress_policy import EgressPolicy
from tests import receivers
from worker.sender import Sender

NewSender = Callable[..., Sender]


@pytest.fixture
def new_sender() -> Iterator[NewSender]:
    """Make senders that may call the given loopback origins, and close them after the test."""
    with contextlib.ExitStack() as stack:

        def make(*origins: str, policy: EgressPolicy | None = None, **options: Any) -> Sender:
            policy = policy or EgressPolicy(dev_origins=frozenset(origins))
            options.setdefault("ca_file", receivers.ca_file())
            return stack.enter_context(Sender(policy=policy, **options))

        yield make
