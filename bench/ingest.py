"""What publishing costs: single events and batches of 1000 over HTTP, web processes only.

./botbat bench ingest
"""

import argparse
import json
import time

from bench import cpu
from bench.load import Request, repeat
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
            headers = {"Authorization": f"Bearer {prepared.api_key}", "Content-Type": "application/json"}
            target = Request(port, "POST", path, 202, headers, json.dumps(body).encode())
            repeat(target, 1, 2)  # warm up
            before, started = prepared.cpu(), time.monotonic()
            requests = repeat(target, arguments.seconds, arguments.connections)
            seconds, used = time.monotonic() - started, cpu.between(before, prepared.cpu())
            count = requests * events
            print(
                f"{name:10}{count / seconds:>12,.0f}"
                f"{used['web'] / count * 1000:>32.3f} + {used['database'] / count * 1000:.3f}"
            )


if __name__ == "__main__":
    main()
