"""The commands of the long-running processes: complete, and without a secret that others can see."""

import shutil
from dataclasses import replace

import pytest

from app import processes
from app.processes import CannotStart
from config.settings import load_settings
from config.wire import QueueName


def test_web_serves_the_application():
    command = processes.web(["--workers", "1"])
    assert command.argv[1:3] == ["-m", "app.server"]
    assert command.argv[-3:] == ["--workers", "1", "app.web:create_app()"]


def test_the_worker_consumes_every_queue():
    argv = processes.worker(["-c", "1"]).argv
    assert set(argv[argv.index("-Q") + 1].split(",")) == {name.value for name in QueueName}
    assert {"--without-gossip", "--without-mingle", "-E"} <= set(argv)
    assert argv[-2:] == ["-c", "1"]


def test_beat_has_the_same_application():
    assert processes.beat().argv[-2:] == ["worker.main:celery", "beat"]


def test_flower_s_password_is_in_its_environment_alone():
    settings = replace(load_settings(), flower_password="secret word", flower_user="me")
    command = processes.flower(settings)
    assert "secret word" not in " ".join(command.argv)
    assert command.environment["FLOWER_BASIC_AUTH"] == "me:secret word"
    assert "--address=127.0.0.1" in command.argv
    assert "--port=5555" in command.argv


def test_flower_listens_where_a_container_has_to():
    settings = replace(load_settings(), flower_password="x", flower_address="0.0.0.0", flower_port=1234)
    assert {"--address=0.0.0.0", "--port=1234"} <= set(processes.flower(settings).argv)


def test_flower_does_not_start_without_a_password_in_production():
    settings = replace(load_settings(), environment="production")
    with pytest.raises(CannotStart, match="FLOWER_PASSWORD"):
        processes.flower(settings)


def test_flower_makes_a_password_in_development(capsys):
    command = processes.flower(load_settings())
    user, _, password = command.environment["FLOWER_BASIC_AUTH"].partition(":")
    assert user == "botbat"
    assert len(password) >= 16
    assert capsys.readouterr().err == f"Flower: user botbat, password {password}\n"


@pytest.mark.parametrize(("user", "password"), [("me", "a,b"), ("m,e", "x"), ("m:e", "x")])
def test_flower_s_login_can_have_only_what_flower_can_read(user, password):
    settings = replace(load_settings(), flower_user=user, flower_password=password)
    with pytest.raises(CannotStart, match="comma"):
        processes.flower(settings)


def test_commands_run_where_the_code_is():
    assert (processes.ROOT / "app" / "processes.py").is_file()
    assert shutil.which(processes.web().argv[0])


def test_changes_leave_the_first_command_as_it_was():
    command = processes.beat()
    assert command.having({"X": "1"}).environment["X"] == "1"
    assert "X" not in command.environment
