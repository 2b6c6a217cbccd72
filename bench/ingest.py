"""What publishing costs: single events and batches of 1000 over HTTP, web processes only.

./botbat bench ingest
"""

import argparse
import http.client
import json
import threading
import time
from dataclasses import dataclass

from bench import cpu
from bench.stage import free_port, stage, web

BODY_BYTES = 1024


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="./botbat bench ingest", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    event = {"type": "message.received", "data": {"text": "x" * (BODY_BYTES - 150)}}
    port = free_port()
    with stage() as prepared, web(port, arguments.processes):
        print(f"{prepared.database}, {arguments.connections} connections, {BODY_BYTES} bytes an event\n")
        print(f"{'':10}{'events/s':>12}{'ms CPU per event: web + database':>40}")
        for name, path, body, events in (
            ("single", "/v1/events", event, 1),
            ("batch", "/v1/events/batch", {"events": [event] * 1000}, 1000),
        ):
            target = _Target(port, path, json.dumps(body).encode(), prepared.api_key)
            _measure(target, 1, 2)  # warm up
            before, started = cpu.snapshot("redis-server"), time.monotonic()
            requests = _measure(target, arguments.seconds, arguments.connections)
            seconds, used = time.monotonic() - started, cpu.between(before, cpu.snapshot("redis-server"))
            count = requests * events
            print(
                f"{name:10}{count / seconds:>12,.0f}"
                f"{used['web'] / count * 1000:>32.3f} + {used['database'] / count * 1000:.3f}"
            )


@dataclass(frozen=True)
class _Target:
    port: int
    path: str
    body: bytes
    api_key: str


def _measure(target: _Target, seconds: float, connections: int) -> int:
    done = [0] * connections
    deadline = time.monotonic() + seconds

    def publish(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port)
        headers = {"Authorization": f"Bearer {target.api_key}", "Content-Type": "application/json"}
        while time.monotonic() < deadline:
            connection.request("POST", target.path, target.body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 202, answer.status  # noqa: PLR2004 - accepted
            done[index] += 1
        connection.close()

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


if __name__ == "__main__":
    main()
