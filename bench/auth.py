"""What authentication costs: web CPU of a request that is refused for its key's scopes, less one that needs no key.

Such a request is authenticated in full, and nothing else is done for it.

./botbat bench auth
"""

import argparse
import statistics
from collections.abc import Callable

from app.api_keys import service as api_keys
from app.web import create_app
from bench import cpu
from bench.load import Request, repeat
from bench.stage import Stage, free_port, stage, web
from bench.wire import round_trips
from config.logging import configure_logging

TARGET_MS = 0.5
_OPEN = "/healthz"
_CLOSED = "/v1/event-types/message.read"  # built in: nothing but the key is read from the database


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="./botbat bench auth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    port = free_port()
    with stage() as prepared, web(port, arguments.processes):
        with prepared.resources.transaction() as uow:
            _, narrow_key = api_keys.create(
                uow, workspace_id=prepared.workspace_id, name="Narrow", scopes=["events:read"]
            )
        requests = [
            Request(port, "GET", _OPEN, 200),
            Request(port, "GET", _CLOSED, 403, _authorization(narrow_key)),
            Request(port, "GET", _CLOSED, 200, _authorization(prepared.api_key)),
        ]
        load = (arguments.seconds, arguments.connections)
        for request in requests:
            repeat(request, *load)  # warm up
        rounds = [[_cost(prepared, request, *load) for request in requests] for _ in range(arguments.rounds)]
        _print_table(prepared, rounds)


_Cost = dict[str, float]


def _cost(prepared: Stage, request: Request, seconds: float, connections: int) -> _Cost:
    """Give the milliseconds of CPU per request, by group of processes."""
    before = prepared.cpu()
    count = repeat(request, seconds, connections)
    used = cpu.between(before, prepared.cpu())
    return {group: used[group] / count * 1000 for group in ("web", "database", "broker")}


def _print_table(prepared: Stage, rounds: list[list[_Cost]]) -> None:
    print(
        f"{prepared.database} and {prepared.broker}; ms of CPU per request, medians of {len(rounds)} rounds\n"
    )
    print(f"{'':44}{'web':>8}{'database':>10}{'broker':>8}")
    rows: list[tuple[str, Callable[[list[_Cost], str], float]]] = [
        (f"{_OPEN}, no key", lambda costs, group: costs[0][group]),
        ("lacks the scope: 403", lambda costs, group: costs[1][group]),
        (f"authentication (at most {TARGET_MS:g})", lambda costs, group: costs[1][group] - costs[0][group]),
        (f"with its view: {_CLOSED}", lambda costs, group: costs[2][group]),
    ]
    for name, pick in rows:
        medians = [statistics.median(pick(costs, group) for costs in rounds) for group in rounds[0][0]]
        print("{:44}{:>8.3f}{:>10.3f}{:>8.3f}".format(name, *medians))
    if prepared.database == "PostgreSQL":
        print(f"\nround trips to the database per request: {_round_trips(prepared):g}")


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _round_trips(prepared: Stage) -> float:
    configure_logging(prepared.resources.settings.log_level)
    client = create_app(prepared.resources).test_client()

    def ask() -> None:
        answer = client.get(_CLOSED, headers=_authorization(prepared.api_key))
        assert answer.status_code == 200, answer.status  # noqa: PLR2004 - fine

    requests = 10
    for _ in range(requests):
        ask()  # the driver prepares a statement that it has seen often, once
    with round_trips(prepared.resources.database) as counted:
        for _ in range(requests):
            ask()
    return counted() / requests


if __name__ == "__main__":
    main()
