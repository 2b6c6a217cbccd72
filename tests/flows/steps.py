"""What the flow tests do: make endpoints, publish, move time, read the log, and have workers run beside the test."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import standardwebhooks
import stripe
from sqlalchemy import select
from werkzeug.test import TestResponse

from app.core.unit_of_work import Resources, open_resources
from app.deliveries import engine
from app.deliveries.models import Delivery, PendingDelivery
from app.endpoints.models import EndpointQueue
from app.events import service as events
from tests.conftest import Api
from tests.receivers import Answer, Connection, Received, Receiver, good_context
from worker import trials
from worker.pump import Pump
from worker.runtime import new_sender

_POLL_SECONDS = 0.01


def url_of(receiver: Receiver | str, path: str = "/hook") -> str:
    """Give a receiver's URL with its address, since `localhost` is no name that an endpoint may have."""
    origin = receiver if isinstance(receiver, str) else receiver.url
    return origin.replace("localhost", "127.0.0.1") + path


def accepted(answer: TestResponse, status: int = 200) -> Any:
    """Give what the API answered, if it is what was expected."""
    assert answer.status_code == status, answer.json
    return answer.json


def make_endpoint(api: Api, receiver: Receiver | str, path: str = "/hook", **fields: Any) -> dict[str, Any]:
    """Make an endpoint; gives it as the API shows it."""
    fields = {"url": url_of(receiver, path), "events": ["message.received"], **fields}
    made: dict[str, Any] = accepted(api.post("/v1/endpoints", fields), 201)
    return made


def change_endpoint(api: Api, made: dict[str, Any], **changes: Any) -> None:
    """Change an endpoint."""
    accepted(api.call("PATCH", f"/v1/endpoints/{made['id']}", changes))


def publish(api: Api, event_type: str = "message.received", **data: Any) -> dict[str, Any]:
    """Publish an event; gives it as the API shows it."""
    event = {"type": event_type, "data": data or {"text": "hi"}}
    published: dict[str, Any] = accepted(api.post("/v1/events", event), 202)
    return published


def publish_many(api: Api, count: int, event_type: str = "message.received") -> list[str]:
    """Publish events as one batch; gives their ids."""
    drafts = [{"type": event_type, "data": {"text": "hi"}} for _ in range(count)]
    answer = accepted(api.post("/v1/events/batch", {"events": drafts}), 202)
    assert answer["accepted"] == count, answer
    return [receipt["id"] for receipt in answer["data"]]


def log_of(api: Api, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Give an endpoint's whole delivery log, newest first."""
    return _all_pages(api, f"/v1/endpoints/{made['id']}/attempts?limit=100")


def deliveries_of(api: Api, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Give an endpoint's deliveries, newest first."""
    return _all_pages(api, f"/v1/deliveries?limit=100&endpoint_id={made['id']}")


def _all_pages(api: Api, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = accepted(api.get(path + cursor))
        items += page["data"]
        if page["next_cursor"] is None:
            return items
        cursor = f"&cursor={page['next_cursor']}"


def the_delivery(resources: Resources) -> Delivery:
    """Give the row of the only delivery that there is."""
    with resources.transaction(write=False) as uow:
        return uow.session.scalars(select(Delivery)).one()


def queue_of(resources: Resources, made: dict[str, Any]) -> EndpointQueue:
    """Give the row of an endpoint's queue."""
    with resources.transaction(write=False) as uow:
        return uow.session.scalars(select(EndpointQueue).where(EndpointQueue.endpoint_id == made["id"])).one()


def pass_time(resources: Resources, seconds: float) -> None:
    """Let time pass for whatever waits: due times, leases, rate limits and holds move back, and what waits is older."""
    shift = timedelta(seconds=seconds)
    with resources.transaction() as uow:
        for pending in uow.session.scalars(select(PendingDelivery)):
            pending.next_attempt_at -= shift
        for delivery in uow.session.scalars(select(Delivery).where(Delivery.status == "pending")):
            delivery.created_at -= shift
        for queue in uow.session.scalars(select(EndpointQueue)):
            for name in ("due_at", "leased_until", "rate_limited_until", "failing_since", "probe_at"):
                moment: datetime | None = getattr(queue, name)
                if moment is not None:
                    setattr(queue, name, moment - shift)


def verify(request: Received, secret: str) -> None:
    """Raise unless both signatures of a request are right."""
    body = request.body.decode()
    if secret.startswith("whsec_"):
        headers = {name: value for name, value in request.headers if name.startswith("webhook-")}
        standardwebhooks.Webhook(secret).verify(body, headers, json_parse=False)
    header = request.header("X-BotBat-Signature")
    stripe.WebhookSignature.verify_header(body, header, secret, tolerance=300)


def ids_received(requests: list[Received]) -> Counter[tuple[str, str]]:
    """Count the requests per path and event."""
    return Counter((request.path, request.header("webhook-id") or "") for request in requests)


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
        time.sleep(_POLL_SECONDS)


@contextmanager
def workers(resources: Resources, *, pumps: int = 1) -> Iterator[None]:
    """Fan out and pump beside the test, as worker processes do; at the end stop them in good order."""
    stopping = threading.Event()

    def fan_out() -> None:
        while not stopping.wait(_POLL_SECONDS):
            with resources.transaction(write=False) as uow:
                waiting = events.any_fan_out(uow)
            if waiting:
                with resources.transaction() as uow:
                    engine.fan_out(uow)

    def pump() -> None:
        own = open_resources(resources.settings, doorbell=resources.doorbell)
        sender = new_sender(own)
        try:
            while not stopping.wait(_POLL_SECONDS):
                Pump(own, sender, stopping=stopping.is_set).run()
        finally:
            sender.close()
            own.close()

    with ThreadPoolExecutor(1 + pumps) as threads:
        running = [threads.submit(fan_out), *(threads.submit(pump) for _ in range(pumps))]
        try:
            yield
        finally:
            stopping.set()
        for future in running:
            future.result()


@dataclass
class Load:
    """What a counting receiver has seen."""

    now: Counter[str] = field(default_factory=Counter)  # under way, per path
    most: Counter[str] = field(default_factory=Counter)  # at once, per path
    arrivals: list[tuple[float, str, str]] = field(default_factory=list)  # time, path, event id
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, path: str) -> list[float]:
        """Give when requests to a path came, on the monotonic clock."""
        with self.lock:
            return [moment for moment, to, _ in self.arrivals if to == path]


@contextmanager
def counting_receiver(delay: float = 0.0, status: int = 200) -> Iterator[tuple[Receiver, Load]]:
    """Run a receiver that counts how many requests are under way at once, per path."""
    load = Load()

    def behave(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            with load.lock:
                load.arrivals.append((time.monotonic(), request.path, request.header("webhook-id") or ""))
                load.now[request.path] += 1
                load.most[request.path] = max(load.most[request.path], load.now[request.path])
            stopped = bool(delay) and connection.receiver.closing.wait(delay)
            with load.lock:
                load.now[request.path] -= 1  # before the answer: the next request may come at once
            if stopped:
                return
            connection.send(Answer(status).as_bytes())

    with Receiver(behave, context=good_context()) as receiver:
        yield receiver, load


@contextmanager
def sending_tests(resources: Resources, resolve: Sequence[str] = ()) -> Iterator[None]:
    """Send tests beside the test, as a worker does; `resolve` gives names addresses, as `host:port:address`."""
    stopping = threading.Event()

    def send() -> None:
        own = open_resources(resources.settings, doorbell=resources.doorbell)
        sender = new_sender(own)
        sender._resolve = list(resolve)
        try:
            while not stopping.wait(_POLL_SECONDS):
                trials.run(own, sender, stopping=stopping.is_set)
        finally:
            sender.close()
            own.close()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(send)
        try:
            yield
        finally:
            stopping.set()
        running.result()


def send_test(api: Api, made: dict[str, Any], **body: Any) -> dict[str, Any]:
    """Send a test to an endpoint; gives the attempt."""
    attempt: dict[str, Any] = accepted(api.post(f"/v1/endpoints/{made['id']}/test", body))
    return attempt
