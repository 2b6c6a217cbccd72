"""CPU time of process groups, from /proc: what a delivery costs is the sum over worker, database and broker."""

import os
import re
from collections.abc import Callable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SERVES_ALL = re.compile(r"postgres: .*(checkpointer|background writer|walwriter|autovacuum)")
_Snapshot = dict[str, float]


def seconds(matches: Callable[[str, str], bool], mark: str = "") -> float:
    """Give the CPU seconds so far of all processes whose (name, command line) matches, ended children included.

    With a `mark` only those that have it in their environment: what a benchmark started, and no other of its kind.
    """
    total = 0.0
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            stat = (directory / "stat").read_text()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if mark and mark.encode() not in (directory / "environ").read_bytes():
                continue
        except OSError:
            continue  # it has ended meanwhile; its parent has its time
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        if matches(name, command):
            fields = stat[stat.rindex(")") + 2 :].split()
            total += sum(int(field) for field in fields[11:15]) / _TICKS
    return total


def snapshot(directory: str, database: str, broker: str) -> _Snapshot:
    """Give the CPU seconds so far by group.

    `directory` is the benchmark's own, `database` the name of its database, `broker` that of the broker's program. What
    serves all databases (the writers, autovacuum) is counted in full.
    """

    def is_database(name: str, command: str) -> bool:
        # A backend is titled `postgres: [cluster:] user database client state`, the others by what they do.
        return name == "postgres" and (database in command or _SERVES_ALL.search(command) is not None)

    return {
        "worker": seconds(lambda _name, command: "worker.main:celery worker" in command, directory),
        "database": seconds(is_database),
        "broker": seconds(lambda name, _command: name.startswith(broker)),
        "web": seconds(lambda _name, command: "gunicorn" in command, directory),
        "receiver": seconds(lambda name, command: name == "nginx" and directory in command),
    }


def between(before: _Snapshot, after: _Snapshot) -> _Snapshot:
    """Give what each group used between two snapshots."""
    return {group: after[group] - before[group] for group in before}
