"""The log files of supervised programs."""

from pathlib import Path

_MAX_BYTES = 20_000_000
_TAIL_BYTES = 4_000
_SHOWN_CHARACTERS = 160


def set_aside(log: Path) -> None:
    """Keep the last run's file as NAME.log.1."""
    if log.exists():
        log.replace(log.with_suffix(".log.1"))


def rotate_if_large(log: Path) -> None:
    """Keep a copy and empty the file in place: the program goes on writing to the end of what it has open."""
    if log.exists() and log.stat().st_size > _MAX_BYTES:
        log.with_suffix(".log.1").write_bytes(log.read_bytes())
        with log.open("r+b") as file:
            file.truncate(0)


def last_line(log: Path) -> str:
    """Give the last line that is not blank, shortened; empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line[:_SHOWN_CHARACTERS] for line in reversed(lines) if line), "")
