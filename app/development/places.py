"""Where a run of `up` listens, and the programs that it is made of."""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from app import processes
from app.development import broker, certificates, ports
from app.development.dev_file import DevFile
from app.development.supervisor import Program, Stop
from app.processes import Command
from config.settings import Settings, write_private

_DEFAULT_FLOWER_PORT = 5555
# They do nothing for a first delivery, so they need not compete with those that do for the processor.
NOT_WAITED_FOR = frozenset({"beat", "flower"})
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read here, not bound


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses of one run. `settings` has the chosen port and password of Flower."""

    settings: Settings
    receiver_port: int

    @property
    def base_url(self) -> str:
        """The API's."""
        return f"http://{_host(self.settings.host)}:{self.settings.port}"

    @property
    def receiver(self) -> str:
        """The receiver's origin."""
        return f"https://localhost:{self.receiver_port}"

    @property
    def flower(self) -> str:
        """Flower's page."""
        return f"http://{_host(self.settings.flower_address)}:{self.settings.flower_port}"

    @property
    def receiver_dir(self) -> Path:
        """The receiver's files."""
        return self.settings.data_dir / "receiver"


def choose(settings: Settings, known: DevFile | None) -> Places:
    """Choose the ports; raises `CannotStart` for one that somebody asked for and cannot have."""
    other = "Stop what listens there, or choose another one: {}={} ./botbat up"
    ports.require(settings.host, settings.port, other.format("PORT", ports.free()))
    receiver_port = _receiver_port(settings)
    flower_port = settings.flower_port
    if flower_port == _DEFAULT_FLOWER_PORT:
        flower_port = ports.this_or_free(settings.port + 2)
    else:
        advice = other.format("FLOWER_PORT", ports.free())
        ports.require(settings.flower_address, flower_port, advice)
    password = settings.flower_password or (known.flower_password if known else "")
    return Places(
        replace(
            settings,
            flower_port=flower_port,
            flower_password=password or secrets.token_urlsafe(12),
        ),
        receiver_port,
    )


def services(places: Places) -> list[Program]:
    """Give the programs beside the broker, which has to run before them."""
    settings, folder = places.settings, places.receiver_dir
    environment = {
        "BOTBAT_ENV": settings.environment,
        "BOTBAT_DATA_DIR": str(settings.data_dir),
        "BOTBAT_DEV_ORIGINS": ",".join([*settings.dev_origins, places.receiver]),
        "BOTBAT_CA_FILE": str(certificates.trusted(folder, settings.ca_file)),
        # They would win over the two above.
        "BOTBAT_DEV_ORIGINS_FILE": "",
        "BOTBAT_CA_FILE_FILE": "",
        "PYTHONUNBUFFERED": "1",
    }
    receiver = processes.python("app.development.receiver", str(folder), str(places.receiver_port))
    commands = {
        "web": processes.web(),
        "worker": processes.worker(),
        "beat": processes.beat(),
        "flower": processes.flower(settings),
        "receiver": receiver,
    }
    return [
        Program(name, command.having(environment), Stop.NEXT if name == "receiver" else Stop.FIRST)
        for name, command in commands.items()
    ]


def broker_program(server: broker.Broker) -> Program:
    """Give the program of the embedded broker."""
    return Program("broker", Command(server.argv, {}), Stop.LAST)


def _receiver_port(settings: Settings) -> int:
    # Kept, because the endpoint's URL has it.
    kept = settings.data_dir / "receiver" / "port"
    if kept.is_file():
        port = int(kept.read_text())
        ports.require(
            "127.0.0.1", port, f"It is the built-in receiver's; to give it another one, remove {kept}"
        )
        return port
    port = ports.this_or_free(settings.port + 1)
    write_private(kept, f"{port}\n")
    return port


def _host(host: str) -> str:
    reachable = _WILDCARDS.get(host, host)
    return f"[{reachable}]" if ":" in reachable else reachable
