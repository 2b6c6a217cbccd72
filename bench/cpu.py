"""CPU time of process groups, from /proc: what a delivery costs is the sum over worker, database and broker."""

import os
from collections.abc import Callable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_Snapshot = dict[str, float]


def seconds(matches: Callable[[str, str], bool]) -> float:
    """Give the CPU seconds so far of all processes whose (name, command line) matches, ended children included."""
    total = 0.0
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            stat = (directory / "stat").read_text()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile; its parent has its time
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        if matches(name, command):
            fields = stat[stat.rindex(")") + 2 :].split()
            total += sum(int(field) for field in fields[11:15]) / _TICKS
    return total


def snapshot(broker: str) -> _Snapshot:
    """Give the CPU seconds so far by group; `broker` is the name of the broker's program."""
    return {
        "worker": seconds(lambda _name, command: "worker.main:celery worker" in command),
        "database": seconds(lambda name, _command: name in {"postgres", "postmaster"}),
        "broker": seconds(lambda name, _command: name.startswith(broker)),
        "web": seconds(lambda _name, command: "gunicorn" in command),
        "receiver": seconds(lambda name, _command: name == "nginx"),
    }


def between(before: _Snapshot, after: _Snapshot) -> _Snapshot:
    """Give what each group used between two snapshots."""
    return {group: after[group] - before[group] for group in before}
