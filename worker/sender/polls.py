"""Waiting for descriptors: select.epoll, what stands in for it where there is none, and how a wait is ended."""

import contextlib
import math
import os
import select
import threading
from typing import Protocol


class Poll(Protocol):
    """What select.epoll offers, as far as it is used."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class PortablePoll:
    """select.poll in the manner of select.epoll, for systems without the latter."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float, /) -> list[tuple[int, int]]:
        return self._poll.poll(math.ceil(timeout * 1000))

    def close(self) -> None:
        """Nothing to close."""


def new_poll() -> Poll:
    """Give the best that this system has."""
    return select.epoll() if hasattr(select, "epoll") else PortablePoll()


class Waker:
    """A pipe: from `wake` until `clear`, a poll that knows its `descriptor` does not wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.descriptor, self._writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        """Any thread may call this, also after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if self._writer >= 0:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        os.read(self.descriptor, 65536)  # all that a pipe holds

    def close(self) -> bool:
        """Tell whether this was the first call."""
        with self._lock:
            if self._writer < 0:
                return False
            os.close(self._writer)
            self._writer = -1
        os.close(self.descriptor)
        return True
