"""Deliveries per second and CPU per delivery: N events to M endpoints, workers only, beside the bare sender.

    ./botbat bench drain --events 50000 --endpoints 1

DATABASE_URL and BROKER_URL choose PostgreSQL and Redis; without them the embedded default is measured.
"""

import argparse
import json
import time
from dataclasses import dataclass

import redis
from sqlalchemy import text

from app.core.egress_policy import EgressPolicy
from app.core.errors import AppError
from app.core.signing import generate_secret, sign, signing_key
from app.core.unit_of_work import Resources
from app.endpoints import service as endpoints
from app.events import service as events
from app.events.service import Draft
from bench import cpu
from bench.stage import Stage, stage, worker
from config.wire import TaskName
from worker.sender import Outgoing, Sender

BODY_BYTES = 1024
_GROUPS = ("worker", "database", "broker")


@dataclass(frozen=True)
class Result:
    """One measured run; CPU in milliseconds per delivery."""

    per_second: float
    cpu_ms: dict[str, float]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="./botbat bench drain", description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--endpoints", type=int, default=1)
    parser.add_argument("--max-in-flight", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object per round instead")
    arguments = parser.parse_args()
    with stage() as prepared:
        each = _subscribe(prepared, arguments.endpoints, arguments.max_in_flight)
        if not arguments.json:
            print(
                f"{arguments.events} events of {BODY_BYTES} bytes to {arguments.endpoints} endpoint(s), "
                f"TLS with keep-alive, {prepared.database} and {prepared.broker}\n"
            )
            print(
                f"{'':14}{'per second':>12}{'ms CPU per delivery: ' + ' + '.join(_GROUPS) + ' = total':>56}"
            )
        for _ in range(arguments.rounds):
            bare = _bare(prepared, min(arguments.events, 50_000), arguments.max_in_flight)
            engine = _drain(prepared, arguments.events, arguments.events * each)
            if arguments.json:
                print(json.dumps({"bare": bare.__dict__, "engine": engine.__dict__}))
            else:
                _show("bare sender", bare)
                _show("engine", engine)
                print(f"{'ratio':14}{engine.per_second / bare.per_second:>12.2f}\n")


def _subscribe(prepared: Stage, count: int, max_in_flight: int) -> int:
    """Make the endpoints; gives how many deliveries an event makes."""
    for index in range(count):
        with prepared.resources.transaction() as uow:
            endpoints.create(
                uow,
                workspace_id=prepared.workspace_id,
                url=f"{prepared.receiver_url}{index}",
                events=["message.received"],
                policy={"max_in_flight": max_in_flight},
            )
    return count


def _drain(prepared: Stage, count: int, deliveries: int) -> Result:
    data = {"text": "x" * (BODY_BYTES - 150)}
    for start in range(0, count, 1000):
        # Committed without ringing: the worker is not there yet.
        with prepared.resources.transaction() as uow:
            drafts: list[Draft | AppError] = [Draft("message.received", data)] * min(1000, count - start)
            events.publish_many(uow, workspace_id=prepared.workspace_id, drafts=drafts)
    with worker():
        wait_until_ready(prepared)
        before, started = prepared.cpu(), time.monotonic()
        prepared.doorbell.ring(TaskName.EVENTS_FAN_OUT)
        _wait_until_drained(prepared.resources)
        seconds = time.monotonic() - started
        used = cpu.between(before, prepared.cpu())
    return Result(deliveries / seconds, {group: used[group] / deliveries * 1000 for group in _GROUPS})


def _bare(prepared: Stage, count: int, in_flight: int) -> Result:
    """Send signed requests with the same sender from memory: no database, no log, no retries."""
    policy = EgressPolicy(dev_origins=frozenset({prepared.receiver_url.rstrip("/")}))
    sender = Sender(policy=policy, ca_file=str(prepared.ca_file), max_connections=in_flight)
    key, body = signing_key(generate_secret()), b"x" * BODY_BYTES
    sent = done = 0
    before, started = time.process_time(), time.monotonic()
    while done < count:
        while sent < count and sender.in_flight < in_flight:
            ours, standard = sign([key], "evt_0", 1767225600, body)
            headers = [
                "Content-Type: application/json",
                f"X-BotBat-Signature: {ours}",
                f"webhook-signature: {standard}",
            ]
            sender.start(Outgoing(prepared.receiver_url, headers, body, 15_000, None))
            sent += 1
        for outcome in sender.run(1):
            assert outcome.status_code == 200, outcome  # noqa: PLR2004 - what the receiver answers
            done += 1
    seconds, used = time.monotonic() - started, time.process_time() - before
    sender.close()
    return Result(count / seconds, {"worker": used / count * 1000, "database": 0.0, "broker": 0.0})


def wait_until_ready(prepared: Stage) -> None:
    """Wait until the worker has taken a message."""
    deadline = time.monotonic() + 30
    prepared.doorbell.ring(TaskName.DELIVERIES_SWEEP)
    with redis.Redis.from_url(prepared.resources.settings.broker_url) as client:
        while client.llen(f"botbat:{TaskName.DELIVERIES_SWEEP.queue.value}"):
            if time.monotonic() > deadline:
                raise SystemExit("The worker did not start within 30 s.")
            time.sleep(0.05)
    time.sleep(0.5)


def _wait_until_drained(resources: Resources) -> None:
    left = text("SELECT 1 FROM fan_outs UNION ALL SELECT 1 FROM pending_deliveries LIMIT 1")
    with resources.database.engine.connect() as connection:
        while True:
            found = connection.execute(left).first()
            connection.rollback()
            if not found:
                return
            time.sleep(0.05)


def _show(name: str, result: Result) -> None:
    parts = " + ".join(f"{result.cpu_ms[group]:.3f}" for group in _GROUPS)
    print(f"{name:14}{result.per_second:>12,.0f}{parts + f' = {sum(result.cpu_ms.values()):.3f}':>56}")


if __name__ == "__main__":
    main()
