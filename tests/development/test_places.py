"""`up` says in one line which port is taken, and keeps those that others rely on."""

import json
import socket
from dataclasses import fields, replace

import pytest

from app.development import certificates, dev_file, places, ports
from app.development.dev_file import DevFile
from app.development.supervisor import Stop
from app.processes import CannotStart
from config.settings import load_settings

DEV = DevFile(**{field.name: field.name.upper() for field in fields(DevFile)})


@pytest.fixture
def taken():
    """Give a port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def settings():
    return replace(load_settings(), port=ports.free())


def test_a_taken_port_is_said_with_what_to_do(settings, taken):
    with pytest.raises(CannotStart) as refused:
        places.choose(replace(settings, port=taken), None)
    assert str(refused.value).startswith(
        f"Port {taken} is taken. Stop what listens there, or choose another one: PORT="
    )
    assert len(str(refused.value).splitlines()) == 1
    assert not (settings.data_dir / "receiver").exists()


def test_flower_s_port_is_said_only_when_it_was_chosen(settings, taken):
    with pytest.raises(CannotStart, match=f"Port {taken} is taken.*FLOWER_PORT="):
        places.choose(replace(settings, flower_port=taken), None)
    assert places.choose(settings, None).settings.flower_port not in {taken, 5555}


def test_an_address_of_another_machine_cannot_be_used(settings):
    with pytest.raises(CannotStart, match="cannot be used"):
        places.choose(replace(settings, host="203.0.113.1"), None)


def test_the_receiver_keeps_its_port(settings):
    first = places.choose(settings, None)
    again = places.choose(replace(settings, port=ports.free()), None)
    assert again.receiver_port == first.receiver_port
    assert again.receiver == f"https://localhost:{first.receiver_port}"


def test_the_receiver_s_port_is_said_when_it_is_taken_later(settings, taken):
    places.choose(settings, None)
    (settings.data_dir / "receiver" / "port").write_text(f"{taken}\n")
    with pytest.raises(CannotStart, match=f"Port {taken} is taken. It is the built-in receiver's"):
        places.choose(settings, None)


def test_neighbouring_ports_are_preferred_and_others_taken(settings, taken):
    assert ports.this_or_free(taken) != taken
    assert ports.this_or_free(65536) <= 65535
    free = ports.free()
    assert ports.this_or_free(free) == free


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("localhost", "localhost")],
)
def test_a_wildcard_is_no_address_to_call(settings, host, shown):
    chosen = places.Places(replace(settings, host=host, port=8000), 8001)
    assert chosen.base_url == f"http://{shown}:8000"


def test_flower_has_the_user_s_password_or_the_kept_or_a_new_one(settings):
    assert places.choose(replace(settings, flower_password="mine"), DEV).settings.flower_password == "mine"
    assert places.choose(settings, DEV).settings.flower_password == "FLOWER_PASSWORD"
    assert len(places.choose(settings, None).settings.flower_password) >= 16


def test_children_may_deliver_to_the_receiver_and_trust_it(settings, tmp_path):
    user = certificates.ensure(tmp_path / "user").authority
    settings = replace(settings, dev_origins=("https://localhost:9",), ca_file=user)
    chosen = places.choose(settings, None)
    programs = {program.name: program for program in places.services(chosen)}
    assert programs.keys() == {"web", "worker", "beat", "flower", "receiver"}
    for program in programs.values():
        environment = program.command.environment
        assert environment["BOTBAT_DEV_ORIGINS"] == f"https://localhost:9,{chosen.receiver}"
        assert environment["BOTBAT_CA_FILE"] == str(chosen.receiver_dir / "trusted.pem")
        assert not environment["BOTBAT_CA_FILE_FILE"]
    assert {name for name, program in programs.items() if program.stop is not Stop.FIRST} == {"receiver"}
    assert chosen.settings.flower_password in programs["flower"].command.environment["FLOWER_BASIC_AUTH"]


def test_dev_json_is_private_and_complete(settings):
    dev_file.save(settings.data_dir, DEV)
    path = settings.data_dir / "dev.json"
    assert path.stat().st_mode & 0o777 == 0o600
    promised = "base_url console_url api_key workspace_id inbox_url ca_file flower_url"
    assert set(promised.split()) <= json.loads(path.read_text()).keys()
    assert dev_file.load(settings.data_dir) == DEV


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"base_url": "x"}', '"x"'])
def test_a_dev_json_that_is_not_whole_counts_as_none(settings, content):
    settings.data_dir.mkdir()
    if content is not None:
        (settings.data_dir / "dev.json").write_text(content)
    assert dev_file.load(settings.data_dir) is None
