"""What authentication costs: web CPU of a request with an API key, less that of one that needs none.

./botbat bench auth
"""

import argparse
import statistics
from collections.abc import Callable

from app.web import create_app
from bench import cpu
from bench.load import Request, repeat
from bench.stage import Stage, free_port, stage, web
from bench.wire import round_trips
from config.logging import configure_logging

TARGET_MS = 0.5
_OPEN = "/healthz"
_AUTHENTICATED = (
    "/v1/event-types/message.read"  # a built-in type: nothing but the key is read from the database
)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="./botbat bench auth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    port = free_port()
    with stage() as prepared, web(port, arguments.processes):
        headers = {"Authorization": f"Bearer {prepared.api_key}"}
        requests = [Request(port, "GET", _OPEN, 200), Request(port, "GET", _AUTHENTICATED, 200, headers)]
        load = (arguments.seconds, arguments.connections)
        for request in requests:
            repeat(request, *load)  # warm up
        rounds = [[_cost(request, *load) for request in requests] for _ in range(arguments.rounds)]
        _print_table(prepared, arguments.rounds, rounds)


_Cost = dict[str, float]


def _cost(request: Request, seconds: float, connections: int) -> _Cost:
    """Give the milliseconds of CPU per request, by group of processes."""
    before = cpu.snapshot("redis-server")
    count = repeat(request, seconds, connections)
    used = cpu.between(before, cpu.snapshot("redis-server"))
    return {group: used[group] / count * 1000 for group in ("web", "database", "broker")}


def _print_table(prepared: Stage, count: int, rounds: list[list[_Cost]]) -> None:
    print(
        f"{prepared.database} and {prepared.broker}; ms of CPU per request, medians of {count} rounds in turn\n"
    )
    print(f"{'':34}{'web':>8}{'database':>10}{'broker':>8}")
    rows: list[tuple[str, Callable[[list[_Cost], str], float]]] = [
        (_OPEN, lambda pair, group: pair[0][group]),
        (_AUTHENTICATED, lambda pair, group: pair[1][group]),
        ("authentication", lambda pair, group: pair[1][group] - pair[0][group]),
    ]
    for name, pick in rows:
        web_ms, database, broker = (
            statistics.median(pick(pair, group) for pair in rounds) for group in ("web", "database", "broker")
        )
        print(f"{name:34}{web_ms:>8.3f}{database:>10.3f}{broker:>8.3f}")
    print(f"{'at most':34}{TARGET_MS:>8.3f}")
    if prepared.database == "PostgreSQL":
        print(f"\nround trips to the database per request: {_round_trips(prepared):g}")


def _round_trips(prepared: Stage) -> float:
    configure_logging(prepared.resources.settings.log_level)
    client = create_app(prepared.resources).test_client()

    def ask() -> None:
        answer = client.get(_AUTHENTICATED, headers={"Authorization": f"Bearer {prepared.api_key}"})
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
