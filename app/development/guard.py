"""Outlives the supervisor and stops what it left, however it ended: `kill -9` leaves no orphan.

The supervisor writes the process groups that it starts (`+ID`) and that have ended (`-ID`) to our standard
input. The end of that input is the end of the supervisor. Unlike a parent-death signal of the kernel this
reaches whole groups, and works on macOS too.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

_GRACE_SECONDS = 5.0


def main() -> None:
    """Wait for the end of the input, then stop every group that is still listed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        action, group = line[0], int(line[1:])
        if action == "+":
            groups.add(group)
        else:
            groups.discard(group)
    send(groups, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while alive(groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(groups, signal.SIGKILL)


def send(groups: Iterable[int], number: signal.Signals) -> None:
    """Signal whole process groups; those that are gone do not matter."""
    for group in groups:
        # macOS answers EPERM for a group that has only zombies left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def alive(groups: Iterable[int]) -> list[int]:
    """Give those groups that still have a process."""
    found = []
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, 0)
            found.append(group)
    return found


if __name__ == "__main__":
    main()
