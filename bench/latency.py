"""From publishing to arrival, open loop: each event is sent when its time has come, however the last one fares.

./botbat bench latency --rate 50 --seconds 60
"""

import argparse
import http.client
import json
import queue
import threading
import time

from app.endpoints import service as endpoints
from bench.drain import wait_until_ready
from bench.stage import Stage, free_port, stage, web, worker

_PUBLISHERS = 16


def main() -> None:
    """Run the benchmark and print its percentiles."""
    parser = argparse.ArgumentParser(prog="./botbat bench latency", description=__doc__)
    parser.add_argument("--rate", type=float, default=50, help="events per second")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    port = free_port()
    with stage() as prepared, web(port, 2), worker():
        with prepared.resources.transaction() as uow:
            endpoints.create(
                uow,
                workspace_id=prepared.workspace_id,
                url=f"{prepared.receiver_url}timed",
                events=["message.received"],
            )
        wait_until_ready(prepared)
        _publish(prepared, port, 20, 2)  # warm up
        time.sleep(2)
        intended = _publish(prepared, port, arguments.rate, arguments.seconds)
        arrived = _arrivals(prepared, set(intended))
        late = sorted(
            (arrived[event] - moment) * 1000 for event, moment in intended.items() if event in arrived
        )
        print(
            f"{prepared.database} and {prepared.broker}, {arguments.rate:g} events/s for {arguments.seconds:g} s: "
            f"{len(late)} of {len(intended)} arrived\n"
            + "".join(f"{name:>6}{late[int(len(late) * part)]:10.1f} ms\n" for name, part in _PERCENTILES)
            + f"{'max':>6}{late[-1]:10.1f} ms"
        )


_PERCENTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def _publish(prepared: Stage, port: int, rate: float, seconds: float) -> dict[str, float]:
    """Publish at a fixed rate; gives when each event was to be sent, by its id."""
    intended: dict[str, float] = {}
    due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    body = json.dumps({"type": "message.received", "data": {"text": "x" * 870}})
    headers = {"Authorization": f"Bearer {prepared.api_key}", "Content-Type": "application/json"}

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (moment := due.get()) is not None:
            connection.request("POST", "/v1/events", body, headers)
            intended[json.loads(connection.getresponse().read())["id"]] = moment
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(_PUBLISHERS)]
    for thread in threads:
        thread.start()
    start = time.time()
    for index in range(int(rate * seconds)):
        moment = start + index / rate
        time.sleep(max(0.0, moment - time.time()))
        due.put(moment)
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    return intended


def _arrivals(prepared: Stage, wanted: set[str]) -> dict[str, float]:
    deadline = time.monotonic() + 30
    while True:
        lines = prepared.arrivals.read_text().splitlines()
        arrived = {event: float(moment) for moment, event in (line.split() for line in lines)}
        if wanted <= arrived.keys() or time.monotonic() > deadline:
            return arrived
        time.sleep(0.2)


if __name__ == "__main__":
    main()
