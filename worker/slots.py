"""What the children of one worker process share: how many pumps may run, and whether the worker is stopping.

Made when the module is imported, in the main process, so that forked children inherit it.
"""

import atexit
import fcntl
import mmap
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager


class SharedFlag:
    """One bit in memory that parent and children share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Raise the flag for every process."""
        self._memory[0] = 1

    def clear(self) -> None:
        """Lower it."""
        self._memory[0] = 0

    def is_set(self) -> bool:
        """Tell whether it is raised."""
        return self._memory[0] == 1


stopping = SharedFlag()
# Record locks belong to a process and end with it, so that a killed pump never keeps its slot.
_file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
atexit.register(_file.close)


_TESTS_SLOT = 1 << 16  # beyond any pump's


def pump_slot(count: int) -> AbstractContextManager[bool]:
    """Hold one of `count` slots during the block; gives False when all are taken."""
    return _one_of(range(count))


def tests_slot() -> AbstractContextManager[bool]:
    """Hold the slot of the task that sends tests during the block; gives False when it is taken."""
    return _one_of([_TESTS_SLOT])


@contextmanager
def _one_of(slots: Iterable[int]) -> Iterator[bool]:
    for slot in slots:
        try:
            fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            continue
        try:
            yield True
        finally:
            fcntl.lockf(_file, fcntl.LOCK_UN, 1, slot)
        return
    yield False


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Give whether the worker, or this process alone, has been told to stop since the block began.

    Whoever stops a process group (honcho, systemd) signals the children as well. In the block that cuts nothing off:
    what is under way can be finished and recorded, and the main process ends its children afterwards.
    """
    told = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield lambda: told.is_set() or stopping.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
