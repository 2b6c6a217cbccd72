"""A key has its requests per second, over all processes; neither Redis nor anyone else's bad key costs it any."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import http_sf
import pytest
import redis
import sqlalchemy
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from app.api_keys import tokens
from app.core import rate_limit
from app.core.clock import now
from app.core.unit_of_work import Resources, open_resources
from app.development import broker
from app.web import create_app
from config.settings import Settings
from tests.api import expect
from tests.api.routes import KEYED, SCOPES, path_of
from tests.api.steps import age_key, another_key, record_statements, with_key
from tests.conftest import Api

EVENT = {"type": "contact.created", "data": {"contact_id": "c"}}


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an embedded broker."""
    server = broker.configure(tmp_path_factory.mktemp("broker"))
    with running(server):
        yield server.url


@contextmanager
def running(server: broker.Broker) -> Iterator[None]:
    """Run a broker until the block ends."""
    process = subprocess.Popen(server.argv, stdout=subprocess.DEVNULL)
    try:
        assert broker.wait_until_ready(server.url, 10)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def settings(settings: Settings, server_url: str) -> Settings:
    """Have `api` count in that broker."""
    return replace(settings, broker_url=server_url)


@pytest.fixture
def new_process(settings: Settings, doorbell, api: Api) -> Iterator[Callable[..., Api]]:
    """Give the API of further processes on the same database, with changes to their settings."""
    with ExitStack() as stack:

        def make(**changes: Any) -> Api:
            opened = open_resources(replace(settings, **changes), doorbell=doorbell)
            stack.callback(opened.close)
            return replace(api, client=create_app(opened).test_client())

        yield make


@pytest.fixture
def used(server_url) -> Iterator[Callable[..., int]]:
    """Give how many requests are counted for a key; with `count`, after stopping its window there for a while."""
    with redis.Redis.from_url(server_url) as client:

        def use(key_id: str, count: int | None = None) -> int:
            if count is not None:
                client.set(f"botbat:rate_limit:{key_id}", count, ex=60)
            return int(client.get(f"botbat:rate_limit:{key_id}") or 0)

        yield use


def parameters_of(answer: TestResponse, field: str) -> Any:
    """Give the parameters of the one item in a structured field; it is the string `default`."""
    items: Any = http_sf.parse(answer.headers[field].encode(), tltype="list")
    ((name, parameters),) = items
    assert (type(name), name) == (str, "default")
    return parameters


def limit_of(answer: TestResponse) -> tuple[int, int | None]:
    """Give the quota and what is left of it, None when the answer does not tell."""
    policy = parameters_of(answer, "RateLimit-Policy")
    assert policy == {"q": policy["q"], "w": 1}
    if "RateLimit" not in answer.headers:
        return policy["q"], None
    state = parameters_of(answer, "RateLimit")
    assert state == {"r": state["r"], "t": 1}
    return policy["q"], state["r"]


def assert_exceeded(answer: TestResponse, quota: int = 1000) -> None:
    expect.problem(answer, 429, "rate_limited")
    assert answer.headers["Retry-After"] == "1"
    assert limit_of(answer) == (quota, 0)


def test_every_answer_to_a_good_key_tells_its_limit(api, used):
    for number, (method, rule) in enumerate(SCOPES, start=1):
        used(api.key_id, number)
        answer = api.call(method, path_of(rule))
        assert limit_of(answer) == (1000, 1000 - number - 1), (method, rule)


def test_the_first_request_of_a_second_leaves_all_others(api):
    answer = api.get("/v1/events")
    assert answer.headers["RateLimit-Policy"] == '"default";q=1000;w=1'
    assert answer.headers["RateLimit"] == '"default";r=999;t=1'


def test_the_last_request_is_answered_and_one_more_is_not(api, used):
    used(api.key_id, 999)
    assert limit_of(api.post("/v1/events", EVENT)) == (1000, 0)
    assert_exceeded(api.post("/v1/events", EVENT))
    assert_exceeded(api.get("/v1/events"))
    used(api.key_id, 0)
    assert len(expect.ok(api.get("/v1/events"))["data"]) == 1


def test_after_a_second_there_are_more(api, resources):
    key_id, key = another_key(resources, api)
    age_key(resources, key_id, rate_limit_per_second=1)
    mine = with_key(api, key)
    refused = next(
        answer for answer in (mine.get("/v1/events") for _ in range(100)) if answer.status_code == 429
    )
    assert_exceeded(refused, quota=1)
    time.sleep(int(refused.headers["Retry-After"]))
    assert mine.get("/v1/events").status_code == 200


def test_a_large_body_is_refused_before_it_is_read(api, used):
    used(api.key_id, 1000)
    body = b"x" * 100_000
    assert_exceeded(api.post("/v1/events", data=body, content_type="application/json"))


def test_a_replay_counts_as_every_request(api, used):
    used(api.key_id, 10)
    for count in (11, 12):
        api.post("/v1/events", EVENT, headers={"Idempotency-Key": "once"})
        assert used(api.key_id) == count


def test_the_limit_is_a_setting_and_a_key_can_have_its_own(api, new_process, resources, used):
    process = new_process(rate_limit=5)
    key_id, key = another_key(resources, api)
    age_key(resources, key_id, rate_limit_per_second=20)
    used(api.key_id, 5)
    used(key_id, 5)
    assert_exceeded(process.get("/v1/events"), quota=5)
    assert limit_of(with_key(process, key).get("/v1/events")) == (20, 14)
    used(key_id, 20)
    assert_exceeded(with_key(process, key).get("/v1/events"), quota=20)


def test_a_limit_of_its_own_costs_no_further_query(api, resources):
    age_key(resources, api.key_id, rate_limit_per_second=7, last_used_at=now())
    statements = record_statements(resources)
    assert limit_of(api.get("/v1/event-types/message.read")) == (7, 6)
    assert len(statements) == 1


def test_processes_count_together(api, new_process, used):
    used(api.key_id, 996)
    both = [api, new_process()]
    left = [limit_of(each.get("/v1/events"))[1] for each in both * 2]
    assert left == [3, 2, 1, 0]
    for each in both:
        assert_exceeded(each.get("/v1/events"))


def test_keys_count_apart(api, resources, used):
    _, key = another_key(resources, api)
    used(api.key_id, 1000)
    assert_exceeded(api.get("/v1/events"))
    assert with_key(api, key).get("/v1/events").status_code == 200


def test_what_is_refused_with_401_or_403_does_not_count(api, resources, used):
    scopeless_id, scopeless = another_key(resources, api, scopes=["endpoints:read"])
    far_id, far = another_key(resources, api, allowed_cidrs=["203.0.113.0/24"])
    revoked_id, revoked = another_key(resources, api)
    age_key(resources, revoked_id, revoked_at=now())
    expired_id, expired = another_key(resources, api)
    age_key(resources, expired_id, expires_at=now())
    for key_id, key, code in (
        (scopeless_id, scopeless, "insufficient_scope"),
        (far_id, far, "ip_not_allowed"),
        (revoked_id, revoked, "api_key_revoked"),
        (expired_id, expired, "api_key_expired"),
    ):
        used(key_id, 2000)
        answer = with_key(api, key).get("/v1/events")
        expect.problem(answer, answer.status_code, code)
        assert answer.status_code in (401, 403)
        assert used(key_id) == 2000
        assert "RateLimit" not in answer.headers
        # Its limit is told to a key that was only used for the wrong thing.
        assert ("RateLimit-Policy" in answer.headers) == (code == "insufficient_scope")


def test_what_needs_no_key_has_no_limit(api, used):
    used(api.key_id, 2000)
    for path in ("/healthz", "/openapi.json", "/nowhere"):
        answer = api.get(path)
        assert answer.status_code != 429
        assert "RateLimit-Policy" not in answer.headers


# --- Redis away


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Take connections and say nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server


def url_of(server: socket.socket) -> str:
    return f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def accepted(server: socket.socket) -> int:
    """Give how many connections it was sent."""
    server.setblocking(False)
    count = 0
    try:
        while True:
            server.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


def test_requests_go_through_while_redis_is_away_and_nobody_asks_it_again(new_process):
    process = new_process(broker_url="redis://127.0.0.1:1/0")
    with capture_logs() as logs:
        for _ in range(20):
            assert limit_of(process.get("/v1/events")) == (1000, None)
            assert process.post("/v1/events", EVENT).status_code == 202
    failures = [entry["error"] for entry in logs if entry["event"] == "rate_limit.failed"]
    assert set(failures) == {"ConnectionError"}
    assert len(failures) <= 3


def test_requests_go_through_while_redis_hangs_and_one_a_second_waits_for_it(new_process):
    with listening() as server:
        process = new_process(broker_url=url_of(server))
        started = time.monotonic()
        for _ in range(20):
            assert limit_of(process.get("/v1/events")) == (1000, None)
        elapsed = time.monotonic() - started
        assert 1 <= accepted(server) <= 1 + elapsed < 5


def test_redis_that_is_back_counts_again(api, new_process, tmp_path):
    server = broker.configure(tmp_path / "second")
    process = new_process(broker_url=server.url)
    assert limit_of(process.get("/v1/events")) == (1000, None)
    for _ in range(2):  # the second time its connection is one that broke
        with running(server):
            deadline = time.monotonic() + 10
            while limit_of(process.get("/v1/events"))[1] is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert limit_of(process.get("/v1/events"))[1] is not None
        assert limit_of(process.get("/v1/events")) == (1000, None)


def test_redis_that_takes_no_writes_is_away(api, settings, used):
    with redis.Redis.from_url(settings.broker_url) as client:
        client.config_set("maxmemory", 1)
        try:
            assert limit_of(api.get("/v1/events")) == (1000, None)
        finally:
            client.config_set("maxmemory", 0)


def test_no_transaction_waits_for_redis(new_process, resources, monkeypatch):
    monkeypatch.setattr(rate_limit, "_SOCKET_SECONDS", 30)
    with listening() as server:
        process = new_process(broker_url=url_of(server))
        answers: list[TestResponse] = []
        for call in (
            lambda: process.post("/v1/events", EVENT),
            lambda: process.post("/v1/api-keys", {"name": "CI"}),
        ):
            thread = threading.Thread(target=lambda call=call: answers.append(call()))
            thread.start()
            waiting, _ = server.accept()
            assert_nobody_holds_a_transaction(resources)
            waiting.close()
            thread.join(10)
            time.sleep(1.1)  # after which Redis is asked again
    assert [answer.status_code for answer in answers] == [202, 201]


def assert_nobody_holds_a_transaction(resources: Resources) -> None:
    with resources.database.engine.connect() as connection:
        if resources.database.is_sqlite:
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
            connection.rollback()
            connection.connection.driver_connection.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]
            connection.connection.driver_connection.execute("ROLLBACK")  # type: ignore[union-attr]
        else:
            open_ones = connection.execute(
                sqlalchemy.text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
                )
            )
            assert open_ones.scalar_one() == 0


# --- failed keys


def bad_key(number: int = 0) -> dict[str, str]:
    """Give the header of a key that is none and that no other number has."""
    return {"Authorization": f"Bearer bbat_live_{number:049}"}


def unknown_key() -> dict[str, str]:
    """Give the header of a key that looks right."""
    return {"Authorization": f"Bearer {tokens.generate()}"}


def assert_refused(answer: TestResponse) -> None:
    expect.problem(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert not {"RateLimit", "RateLimit-Policy"} & set(answer.headers.keys())


@pytest.fixture
def strict(new_process) -> Api:
    """Give a process that lets three keys fail, and has no Redis."""
    made: Api = new_process(failed_key_limit=3, broker_url="redis://127.0.0.1:1/0")
    return made


@pytest.mark.parametrize("kind", ["malformed", "unknown", "another scheme"])
def test_an_address_whose_keys_fail_too_often_is_told_to_wait(strict, kind):
    for number in range(6):
        headers = {
            "malformed": bad_key(number),
            "unknown": unknown_key(),
            "another scheme": {"Authorization": f"Basic {number}"},
        }[kind]
        answer = strict.client.get("/v1/events", headers=headers)
        if number < 3:
            expect.problem(answer, 401, "invalid_api_key")
        else:
            assert_refused(answer)


def test_good_keys_are_heard_from_such_an_address_and_bad_ones_from_others(strict):
    for _ in range(4):
        answer = strict.client.get("/v1/events", headers=bad_key())
    assert_refused(answer)
    assert strict.get("/v1/events").status_code == 200
    elsewhere = {"environ_overrides": {"REMOTE_ADDR": "203.0.113.9"}}
    expect.problem(strict.client.get("/v1/events", headers=bad_key(), **elsewhere), 401, "invalid_api_key")
    expect.problem(strict.client.get("/v1/events"), 401, "missing_api_key")


def test_good_keys_and_missing_ones_are_no_failures(strict):
    for _ in range(10):
        assert strict.get("/v1/events").status_code == 200
        expect.problem(strict.client.get("/v1/events"), 401, "missing_api_key")
    expect.problem(strict.client.get("/v1/events", headers=bad_key()), 401, "invalid_api_key")


def test_a_revoked_or_expired_key_is_told_so_however_often_it_comes(strict, resources):
    for number in range(4):
        strict.client.get("/v1/events", headers=bad_key(number))
    revoked_id, revoked = another_key(resources, strict)
    age_key(resources, revoked_id, revoked_at=now())
    expired_id, expired = another_key(resources, strict)
    age_key(resources, expired_id, expires_at=now())
    for _ in range(10):
        expect.problem(with_key(strict, revoked).get("/v1/events"), 401, "api_key_revoked")
        expect.problem(with_key(strict, expired).get("/v1/events"), 401, "api_key_expired")


def test_the_database_is_not_asked_again_for_a_key_that_was_refused(strict):
    for number in range(3):
        strict.client.get("/v1/events", headers=bad_key(number))
    headers = unknown_key()
    assert_refused(strict.client.get("/v1/events", headers=headers))
    statements = record_statements(strict.client.application.extensions["botbat"])
    assert_refused(strict.client.get("/v1/events", headers=headers))
    assert statements == []


def test_each_minute_begins_anew(strict, monkeypatch):
    for _ in range(4):
        answer = strict.client.get("/v1/events", headers=bad_key())
    assert_refused(answer)
    later = time.monotonic() + 61
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=lambda: later))
    expect.problem(strict.client.get("/v1/events", headers=bad_key()), 401, "invalid_api_key")


# --- what the document says


def test_the_document_tells_of_the_limit_on_every_operation(api):
    document = api.client.get("/openapi.json").json
    refs = {
        "RateLimit-Policy": {"$ref": "#/components/headers/RateLimitPolicy"},
        "RateLimit": {"$ref": "#/components/headers/RateLimit"},
    }
    refused = document["components"]["responses"]["Problem429"]["headers"]
    assert refused.keys() == {"Retry-After", *refs}
    assert set(document["components"]["headers"]) == {"RateLimitPolicy", "RateLimit"}
    operations = [
        each for path in document["paths"].values() for each in path.values() if "responses" in each
    ]
    assert len(operations) == len(KEYED)
    for operation in operations:
        assert operation["responses"]["429"] == {"$ref": "#/components/responses/Problem429"}
        for status, answer in operation["responses"].items():
            assert status >= "400" or answer["headers"] == refs
