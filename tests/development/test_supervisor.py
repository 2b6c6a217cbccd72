"""What `up` runs is kept running, stops in order and in time, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.development import logs, supervisor
from app.development.supervisor import Program, Stop, Supervisor
from app.processes import ROOT, Command
from config.settings import process_environment

SLEEP = "import time; time.sleep(60)"
# Writes its name when it is told to stop, and when it has.
POLITE = """
import signal, sys, time
name, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
def note(what):
    with open(path, "a") as file: file.write(f"{what} {name}\\n")
def stop(*_):
    note("told"); time.sleep(seconds); note("ended"); sys.exit()
signal.signal(signal.SIGTERM, stop)
note("ready")
time.sleep(60)
"""
# Ignores SIGTERM, as does a process of its own; writes both ids.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
with open(sys.argv[1], "w") as file: file.write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""


def python(name: str, code: str, *arguments: object, stop: Stop = Stop.FIRST) -> Program:
    """Make a program of some lines."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return Program(name, Command(argv, process_environment()), stop)


def until(condition: Callable[[], object], seconds: float = 10, meanwhile=lambda: None) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        meanwhile()
        time.sleep(0.01)


def running(process_id: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ids(path: Path) -> list[int]:
    """Give the process ids that a program wrote."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.fixture
def said():
    return []


@pytest.fixture
def team(tmp_path, said):
    team = Supervisor(tmp_path / "logs", lambda name, text: said.append(f"{name}: {text}"))
    yield team
    team.hurry()
    team.stop()


def test_a_program_that_ends_is_started_again(team, said, tmp_path):
    code = "import sys; open(sys.argv[1], 'a').write('x'); print('out of luck'); sys.exit(3)"
    team.start(python("web", code, tmp_path / "starts"))
    until(lambda: (tmp_path / "starts").exists() and len(said) == 2, meanwhile=team.tend)
    assert said[0] == "web: ended with exit code 3, starting again in 0.5 s. It said: out of luck"
    assert said[1] == "web: ended with exit code 3, starting again in 1 s. It said: out of luck"
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_program_that_is_killed_is_started_again_without_what_it_left(team, said, tmp_path):
    team.start(python("worker", STUBBORN, tmp_path / "ids"))
    until(lambda: len(ids(tmp_path / "ids")) == 2)
    main, child = ids(tmp_path / "ids")
    os.kill(main, signal.SIGKILL)
    until(lambda: said, meanwhile=team.tend)
    assert said == ["worker: killed by SIGKILL, starting again in 0.5 s"]
    until(lambda: not running(child))
    until(lambda: len(ids(tmp_path / "ids")) == 2 and ids(tmp_path / "ids")[0] != main, meanwhile=team.tend)


def test_a_program_that_does_not_exist_is_tried_again(team, said, tmp_path):
    team.start(Program("web", Command([str(tmp_path / "nothing")], {})))
    assert "No such file" in said[0]
    assert said[0].endswith("starting again in 0.5 s")


def test_stopping_has_an_order(team, tmp_path):
    notes = tmp_path / "notes"
    team.start(python("broker", POLITE, "broker", notes, 0, stop=Stop.LAST))
    team.start(python("receiver", POLITE, "receiver", notes, 0.1, stop=Stop.NEXT))
    team.start(python("web", POLITE, "web", notes, 0.3))
    team.start(python("worker", POLITE, "worker", notes, 0.2))
    until(lambda: notes.exists() and notes.read_text().count("ready") == 4)
    team.stop()
    lines = [line for line in notes.read_text().splitlines() if not line.startswith("ready")]
    assert sorted(lines[:2]) == ["told web", "told worker"]
    assert lines[2:] == [
        "ended worker",
        "ended web",
        "told receiver",
        "ended receiver",
        "told broker",
        "ended broker",
    ]


def test_one_may_wait_for_the_next_to_stop(team, said, tmp_path, monkeypatch):
    monkeypatch.setitem(supervisor._STAGE_SECONDS, Stop.FIRST, 0.3)
    notes = tmp_path / "notes"
    team.start(python("receiver", POLITE, "receiver", notes, 0, stop=Stop.NEXT))
    waits = POLITE.replace(
        "time.sleep(seconds)",
        "[time.sleep(.01) for _ in iter(lambda: 'ended rec' in open(path).read(), True)]",
    )
    team.start(python("worker", waits, "worker", notes, 0))
    until(lambda: notes.exists() and notes.read_text().count("ready") == 2)
    team.stop()
    assert notes.read_text().splitlines()[-1] == "ended worker"
    assert said == []


def test_who_does_not_stop_in_time_is_killed_with_all_its_processes(team, said, tmp_path, monkeypatch):
    monkeypatch.setitem(supervisor._STAGE_SECONDS, Stop.FIRST, 0.2)
    monkeypatch.setitem(supervisor._STAGE_SECONDS, Stop.NEXT, 0.2)
    team.start(python("worker", STUBBORN, tmp_path / "ids"))
    until(lambda: len(ids(tmp_path / "ids")) == 2)
    started = time.monotonic()
    team.stop()
    assert time.monotonic() - started < 2
    assert said == ["worker: did not stop in time, killed"]
    until(lambda: not any(map(running, ids(tmp_path / "ids"))))


def test_the_stages_fit_into_ten_seconds():
    assert sum(supervisor._STAGE_SECONDS.values()) < 9


def test_in_a_hurry_nobody_is_waited_for(team, tmp_path):
    team.start(python("worker", STUBBORN, tmp_path / "ids"))
    until(lambda: len(ids(tmp_path / "ids")) == 2)
    team.hurry()
    started = time.monotonic()
    team.stop()
    assert time.monotonic() - started < 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from app.development.supervisor import Program, Supervisor
from app.processes import Command
from config.settings import process_environment
folder = Path(sys.argv[1])
team = Supervisor(folder / "logs", print)
argv = [sys.executable, "-c", {STUBBORN!r}, str(folder / "ids")]
team.start(Program("worker", Command(argv, process_environment())))
team.start(Program("web", Command(["sleep", "60"], process_environment())))
(folder / "web").write_text(str(team._children["web"].process.pid))
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until(lambda: len(ids(tmp_path / "ids")) == 2 and ids(tmp_path / "web"))
    process.kill()
    process.wait()
    until(lambda: not running(ids(tmp_path / "web")[0]), 2)
    # The stubborn one has the guard's five seconds.
    until(lambda: not any(map(running, ids(tmp_path / "ids"))), 8)


def test_the_last_run_s_log_is_kept_once(team, tmp_path):
    (tmp_path / "logs" / "web.log").write_text("last time\n")
    team.start(python("web", "print('this time', flush=True);" + SLEEP))
    until(lambda: logs.last_line(team.log("web")) == "this time")
    assert (tmp_path / "logs" / "web.log.1").read_text() == "last time\n"


def test_a_large_log_is_emptied_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_MAX_BYTES", 10)
    log = tmp_path / "web.log"
    with log.open("ab") as program:
        program.write(b"0123456789\n")
        program.flush()
        logs.rotate_if_large(log)
        program.write(b"more\n")
    assert log.read_bytes() == b"more\n"
    assert (tmp_path / "web.log.1").read_bytes() == b"0123456789\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", ""), (b"a\nb\n\n  \n", "b"), (b"\xff", "\N{REPLACEMENT CHARACTER}"), (b"x" * 9000, "x" * 160)],
)
def test_last_line_of_a_log(tmp_path, content, line):
    (tmp_path / "log").write_bytes(content)
    assert logs.last_line(tmp_path / "log") == line
    assert logs.last_line(tmp_path / "none") == ""
