"""`./botbat` needs Python alone, installs once, and gets out of the way."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
# Stands for app.cli: tells what it was started with.
CLI = """
import json, os, sys
names = ("PYTHONPATH", "BOTBAT_DATA_DIR")
print(json.dumps([sys.argv[1:], os.getcwd(), sys.prefix] + [os.environ.get(name) for name in names]))
"""
# Stands for uv: makes the environment, and writes down what it was asked for.
UV = """#!/bin/sh
echo "$@" >> "{calls}"
[ "$1" = venv ] && exec "{python}" -m venv --without-pip "$6"
{install}
"""


@pytest.fixture
def project(tmp_path):
    """Give a folder with the script and an application that has no requirements."""
    project = tmp_path / "a project"
    (project / "app").mkdir(parents=True)
    shutil.copy(ROOT / "botbat", project)
    (project / "app" / "cli.py").write_text(CLI)
    for name in ("requirements.txt", "requirements-dev.txt"):
        (project / name).write_text(f"# {name}\n")
    return project


@pytest.fixture
def uv(tmp_path):
    """Make a stand-in for uv; gives the folder for the path, and the file of its calls."""

    def make(install: str = "exit 0") -> tuple[Path, Path]:
        folder, calls = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir(exist_ok=True)
        (folder / "uv").write_text(UV.format(calls=calls, python=sys.executable, install=install))
        (folder / "uv").chmod(0o755)
        return folder, calls

    return make


def botbat(
    project: Path, *arguments: str, path: Path | None = None, cwd: Path | None = None, **environment: str
):
    """Run the script with this Python, and no uv but that in `path`."""
    return subprocess.run(
        [sys.executable, str(project / "botbat"), *arguments],
        cwd=cwd or project,
        env={"PATH": f"{path or ''}:/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def module() -> ModuleType:
    """Load the script as a module."""
    loader = SourceFileLoader("botbat", str(ROOT / "botbat"))
    spec = importlib.util.spec_from_loader("botbat", loader)
    assert spec
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # beside the script would be litter
        loader.exec_module(loaded)
    return loaded


def test_with_pip_alone_it_installs_once_and_runs_the_command(project, tmp_path):
    first = botbat(project, "config", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    arguments, directory, prefix, path, data_dir = json.loads(first.stdout)
    assert arguments == ["config", "--json"]
    assert directory == str(tmp_path), "relative paths stay the user's"
    assert prefix == str(project / ".venv")
    assert path == str(project)
    assert data_dir == str(project / "var")
    assert first.stderr.splitlines()[0] == "botbat: installing requirements.txt into .venv ..."
    again = botbat(project, "config", BOTBAT_DATA_DIR="elsewhere", PYTHONPATH="/more")
    assert again.stderr == ""
    assert json.loads(again.stdout)[3:] == [f"{project}:/more", "elsewhere"]


def test_with_uv_it_uses_that(project, uv):
    folder, calls = uv()
    result = botbat(project, "config", path=folder)
    assert result.returncode == 0, result.stderr
    venv, pip = calls.read_text().splitlines()
    assert venv == f"venv --quiet --allow-existing --python {sys.executable} {project / '.venv'}"
    python = project / ".venv" / "bin" / "python"
    options = f"--quiet --compile-bytecode --python {python} --require-hashes"
    assert pip == f"pip install {options} -r requirements.txt"
    assert "--json" not in result.stdout


@pytest.mark.parametrize("command", ["test", "check", "bench"])
def test_commands_for_development_install_more_and_that_covers_the_rest(project, uv, command):
    folder, calls = uv()
    assert botbat(project, command, path=folder).returncode == 0
    assert botbat(project, "config", path=folder).stderr == ""
    assert [line.split()[-1] for line in calls.read_text().splitlines()[1:]] == ["requirements-dev.txt"]


def test_changed_requirements_are_installed_again(project, uv):
    folder, calls = uv()
    botbat(project, "config", path=folder)
    (project / "requirements.txt").write_text("# others\n")
    assert "installing" in botbat(project, "config", path=folder).stderr
    assert botbat(project, "config", path=folder).stderr == ""
    assert calls.read_text().count("-r requirements.txt") == 2


def test_two_at_once_install_once(project, uv):
    folder, calls = uv("sleep 0.5")
    command = [sys.executable, str(project / "botbat"), "config"]
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": "/nonexistent"}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    for process in started:
        process.communicate(timeout=20)
    assert [process.returncode for process in started] == [0, 0, 0]
    assert calls.read_text().count("-r requirements.txt") == 1


def test_an_installation_that_fails_is_said_and_tried_again(project, uv):
    folder, _calls = uv("echo no network >&2; exit 1")
    result = botbat(project, "config", path=folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[1] == "no network"
    assert result.stderr.splitlines()[2].startswith("botbat: `")
    folder, _calls = uv()
    assert botbat(project, "config", path=folder).returncode == 0


def test_an_application_folder_where_the_user_stands_is_not_ours(project, uv, tmp_path):
    folder, _calls = uv()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "app").mkdir(parents=True)
    (elsewhere / "app" / "cli.py").write_text("raise SystemExit('not this one')")
    result = botbat(project, "config", path=folder, cwd=elsewhere)
    assert result.returncode == 0, result.stderr


def test_an_older_python_is_told_so(monkeypatch):
    script = module()
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"Python 3.11 or later is needed, this is 3.9\."):
        script.main()


def test_the_script_can_be_read_by_an_older_python():
    """So that it gets as far as that sentence."""
    ast.parse((ROOT / "botbat").read_text(), feature_version=(3, 7))


def test_a_python_without_venv_is_told_what_to_install(monkeypatch):
    script = module()
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit, match="sudo apt-get install -y python3-venv"):
        script.make_environment(None)


def test_lock_compiles_both_files(project, uv):
    folder, calls = uv()
    for name in ("requirements.in", "requirements-dev.in"):
        (project / name).write_text("")
    assert botbat(project, "lock", path=folder).returncode == 0
    options = "pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11"
    assert calls.read_text().splitlines() == [
        f"{options} requirements.in --output-file requirements.txt",
        f"{options} requirements-dev.in --output-file requirements-dev.txt",
    ]


def test_lock_without_uv_says_so(project):
    result = botbat(project, "lock")
    assert result.returncode == 1
    assert result.stderr == "botbat: lock needs uv. Try: pip install uv\n"


def test_it_needs_the_standard_library_alone():
    for node in ast.walk(ast.parse((ROOT / "botbat").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
