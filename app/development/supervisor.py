"""Runs programs: one that ends is started again; stopping has an order, a time limit and no leftovers."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from app.development import guard, logs
from app.processes import ROOT, Command
from config.settings import make_private_dir, process_environment

_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 8.0
_STEADY_SECONDS = 30.0  # who ran that long starts again with the first pause
_POLL_SECONDS = 0.02


class Stop(IntEnum):
    """When a program is told to stop."""

    FIRST = 0
    NEXT = 1  # even if those before have not ended: their end may wait for this one's
    LAST = 2  # when all others have ended


# Together below 10 s, the promise of `up`.
_STAGE_SECONDS = {Stop.FIRST: 4.0, Stop.NEXT: 2.5, Stop.LAST: 2.0}


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be kept running."""

    name: str
    command: Command
    stop: Stop = Stop.FIRST


@dataclass(slots=True)
class _Child:
    program: Program
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS


class Supervisor:
    """Keeps programs running until `stop`. Each prints into a log file; `say` gets what changes."""

    def __init__(self, log_dir: Path, say: Callable[[str, str], None]) -> None:
        self._log_dir = log_dir
        self._say = say
        self._children: dict[str, _Child] = {}
        self._hurry = False
        make_private_dir(log_dir)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "app.development.guard"],
            cwd=ROOT,
            env=process_environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def start(self, program: Program) -> None:
        """Start a program, now and again whenever it ends."""
        log = self._log_dir / f"{program.name}.log"
        logs.set_aside(log)
        child = self._children[program.name] = _Child(program, log)
        self._launch(child)

    def tend(self) -> None:
        """Look once: note what has ended, start again what has paused long enough."""
        for child in self._children.values():
            logs.rotate_if_large(child.log)
            if child.process is None:
                if time.monotonic() >= child.start_at:
                    self._launch(child)
            elif child.process.poll() is not None:
                self._ended(child, _reason(child.process.returncode))

    def log(self, name: str) -> Path:
        """Give the log file of a program."""
        return self._children[name].log

    def hurry(self) -> None:
        """Have `stop` wait for nobody. A signal handler may call this."""
        self._hurry = True

    def stop(self) -> None:
        """Stop all, in order; whoever has not ended within the seconds of its stage is killed."""
        for stage in Stop:
            if stage is Stop.LAST:
                self._kill(Stop.NEXT)
            for child in self._children.values():
                if child.process and child.program.stop is stage:
                    guard.send([child.process.pid], signal.SIGTERM)
            self._wait(stage)
        self._kill(Stop.LAST)
        assert self._guard.stdin
        self._guard.stdin.close()
        self._guard.wait()

    def _launch(self, child: _Child) -> None:
        command = child.program.command
        child.started_at = time.monotonic()
        try:
            with child.log.open("ab") as log:
                child.process = subprocess.Popen(
                    command.argv,
                    cwd=ROOT,
                    env=command.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._ended(child, str(error))
        else:
            self._tell_guard("+", child.process.pid)

    def _ended(self, child: _Child, reason: str) -> None:
        self._clear(child)
        now = time.monotonic()
        if now - child.started_at > _STEADY_SECONDS:
            child.pause = _FIRST_PAUSE_SECONDS
        last = logs.last_line(child.log)
        self._say(
            child.program.name,
            f"{reason}, starting again in {child.pause:g} s{f'. It said: {last}' if last else ''}",
        )
        child.start_at = now + child.pause
        child.pause = min(child.pause * 2, _MAX_PAUSE_SECONDS)

    def _clear(self, child: _Child) -> None:
        """Remove what a program that has ended may have left of its own processes."""
        if child.process:
            guard.send([child.process.pid], signal.SIGKILL)
            self._tell_guard("-", child.process.pid)
            child.process = None

    def _wait(self, stage: Stop) -> None:
        deadline = time.monotonic() + _STAGE_SECONDS[stage]
        while self._running(stage) and time.monotonic() < deadline and not self._hurry:
            time.sleep(_POLL_SECONDS)

    def _running(self, until: Stop) -> list[_Child]:
        running = []
        for child in self._children.values():
            if child.process and child.program.stop <= until:
                if child.process.poll() is None:
                    running.append(child)
                else:
                    self._clear(child)
        return running

    def _kill(self, until: Stop) -> None:
        for child in self._running(until):
            assert child.process
            self._say(child.program.name, "did not stop in time, killed")
            guard.send([child.process.pid], signal.SIGKILL)
            child.process.wait()
            self._clear(child)

    def _tell_guard(self, action: str, group: int) -> None:
        assert self._guard.stdin
        with contextlib.suppress(OSError):  # somebody killed the guard: the programs can do without
            self._guard.stdin.write(f"{action}{group}\n".encode())
            self._guard.stdin.flush()


def _reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
