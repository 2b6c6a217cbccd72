"""Signing secrets and header values: shown where they must be, and nowhere readable at rest."""

import base64
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text
from structlog.testing import capture_logs

from app.core.unit_of_work import Resources
from tests.api import expect
from tests.conftest import Api

MINIMAL = {"url": "https://hooks.example.com/botbat", "events": ["*"]}


def create(api: Api, **fields: Any) -> Any:
    return expect.ok(api.post("/v1/endpoints", MINIMAL | fields), 201)


def secret_of(api: Api, endpoint_id: str) -> Any:
    return expect.ok(api.get(f"/v1/endpoints/{endpoint_id}/secret"))


def everything_at_rest(resources: Resources) -> bytes:
    """Give all that the database holds, as bytes: every column of every table, and the file itself if it is one."""
    found = []
    with resources.database.engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            for row in connection.execute(text(f'SELECT * FROM "{table}"')):
                found += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    path = resources.database.engine.url.database
    if resources.database.is_sqlite and path:
        found += [file.read_bytes() for file in Path(path).parent.glob(Path(path).name + "*")]
    return b"\n".join(found)


def test_a_generated_secret_is_whsec_and_33_random_bytes(api):
    secrets = [create(api)["signing_secret"] for _ in range(3)]
    assert len(set(secrets)) == 3
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 33


def test_a_secret_is_shown_when_it_is_made_and_when_it_is_asked_for(api):
    made = create(api)
    assert secret_of(api, made["id"]) == {"signing_secret": made["signing_secret"], "previous": []}
    for answer in (
        api.get("/v1/endpoints"),
        api.get(f"/v1/endpoints/{made['id']}"),
        api.call("PATCH", f"/v1/endpoints/{made['id']}", {"signing_secret": made["signing_secret"]}),
        api.post(f"/v1/endpoints/{made['id']}/pause"),
        api.post(f"/v1/endpoints/{made['id']}/resume"),
    ):
        expect.ok(answer)
        assert made["signing_secret"] not in answer.get_data(as_text=True)
        assert "signing_secret" not in answer.get_data(as_text=True)


def test_a_customers_own_secret(api):
    for secret in ("x" * 16, "x" * 256, "with spaces, ~ and !", "whsec_not base64!", "whsec_" + "A" * 44):
        made = create(api, signing_secret=secret)
        assert made["signing_secret"] == secret
        assert secret_of(api, made["id"])["signing_secret"] == secret
    assert create(api, signing_secret=None)["signing_secret"].startswith("whsec_")


def test_what_is_no_secret(api):
    made = create(api)
    bad: list[Any] = [
        "",
        "x" * 15,
        "x" * 257,
        "\u00e9" * 16,
        "x" * 16 + "\n",
        "x" * 15 + "\x7f",
        5,
        True,
        ["x" * 16],
    ]
    for secret in bad:
        expect.invalid(api.post("/v1/endpoints", {**MINIMAL, "signing_secret": secret}), "/signing_secret")
        answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"signing_secret": secret})
        expect.invalid(answer, "/signing_secret")
    answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"signing_secret": None})
    expect.invalid(answer, "/signing_secret")
    assert secret_of(api, made["id"])["signing_secret"] == made["signing_secret"]
    assert len(api.get("/v1/endpoints").json["data"]) == 1


def test_a_secret_can_be_replaced(api):
    made = create(api)
    answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"signing_secret": "a secret of our own"})
    expect.ok(answer)
    assert secret_of(api, made["id"])["signing_secret"] == "a secret of our own"


def test_header_values_are_never_shown(api):
    made = create(api, headers={"X-Tenant": "canary-1", "Authorization": "Bearer canary-2"})
    assert made["headers"] == {"X-Tenant": "***", "Authorization": "***"}
    for answer in (api.get("/v1/endpoints"), api.get(f"/v1/endpoints/{made['id']}")):
        assert "canary" not in answer.get_data(as_text=True)


def test_changes_of_headers_are_merged(api):
    made = create(api, headers={"X-A": "1", "X-B": "2", "X-C": "3"})

    def change(headers: dict[str, Any]) -> Any:
        return expect.ok(api.call("PATCH", f"/v1/endpoints/{made['id']}", {"headers": headers}))["headers"]

    assert change({"X-B": None}) == {"X-A": "***", "X-C": "***"}
    assert change({"x-c": "4", "X-D": "5"}) == {"X-A": "***", "x-c": "***", "X-D": "***"}
    assert change({"X-Not-There": None, "x-a": None}) == {"x-c": "***", "X-D": "***"}
    assert change({}) == {"x-c": "***", "X-D": "***"}


def test_headers_that_may_not_be_set(api):
    forbidden = [
        *(
            "Host",
            "content-type",
            "Content-Length",
            "Content-Encoding",
            "Transfer-Encoding",
            "Connection",
            "TE",
        ),
        *("Keep-Alive", "Trailer", "Upgrade", "Expect", "Cookie", "User-Agent", "Accept-Encoding", "Via"),
        *("Forwarded", "X-Forwarded-For", "X-Real-IP", "Proxy-Authorization", "Metadata", "Metadata-Flavor"),
        *("webhook-id", "WEBHOOK-SIGNATURE", "svix-id", "X-BotBat-Signature", "X-aws-ec2-metadata-token"),
        *("X-Google-Metadata-Request", "X-Amz-Security-Token"),
    ]
    made = create(api)
    for name in forbidden:
        expect.invalid(api.post("/v1/endpoints", {**MINIMAL, "headers": {name: "x"}}), f"/headers/{name}")
        answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"headers": {name: "x"}})
        expect.invalid(answer, f"/headers/{name}")
    assert expect.ok(api.get("/v1/endpoints"))["data"][0]["headers"] == {}


def test_headers_that_are_none(api):
    bad: list[tuple[Any, str]] = [
        ({"": "x"}, "/headers/"),
        ({"X A": "x"}, "/headers/X A"),
        ({"X:A": "x"}, "/headers/X:A"),
        ({"X/A~": "x"}, "/headers/X~1A~0"),
        ({"X-\u00fc": "x"}, "/headers/X-\u00fc"),
        ({"X-A\n": "x"}, "/headers/X-A\n"),
        ({"X" * 65: "x"}, "/headers/" + "X" * 65),
        ({"X-A": ""}, "/headers/X-A"),
        ({"X-A": " x"}, "/headers/X-A"),
        ({"X-A": "x "}, "/headers/X-A"),
        ({"X-A": "x\r\nX-B: y"}, "/headers/X-A"),
        ({"X-A": "x\ty"}, "/headers/X-A"),
        ({"X-A": "\u00e9"}, "/headers/X-A"),
        ({"X-A": "x" * 1025}, "/headers/X-A"),
        ({"X-A": 5}, "/headers/X-A"),
        ({"X-A": ["x"]}, "/headers/X-A"),
        ({"X-A": None}, "/headers/X-A"),
        ({"X-A": "1", "x-a": "2"}, "/headers"),
        ({f"X-{number}": "x" for number in range(11)}, "/headers"),
        ([], "/headers"),
        ("X-A: x", "/headers"),
        (None, "/headers"),
    ]
    for headers, pointer in bad:
        expect.invalid(api.post("/v1/endpoints", {**MINIMAL, "headers": headers}), pointer)
    assert expect.ok(api.get("/v1/endpoints"))["data"] == []
    good = {f"X-{number}": "x" * 1024 for number in range(8)} | {"!#$%&'*+.^_|~-": "a b", "X" * 64: "~"}
    assert len(create(api, headers=good)["headers"]) == 10


def test_eleven_headers_do_not_come_in_by_and_by(api):
    made = create(api, headers={f"X-{number}": "x" for number in range(10)})
    answer = api.call("PATCH", f"/v1/endpoints/{made['id']}", {"headers": {"X-10": "x"}})
    expect.invalid(answer, "/headers")
    assert len(api.get(f"/v1/endpoints/{made['id']}").json["headers"]) == 10


def test_nothing_secret_can_be_read_in_the_database(api, resources):
    idempotency = {"Idempotency-Key": "canary-create"}
    headers = {"Authorization": "Bearer canary-in-a-header"}
    own = create(api, signing_secret="canary of our own choosing", headers=headers)
    answer = api.post("/v1/endpoints", {**MINIMAL, "headers": headers}, headers=idempotency)
    generated = expect.ok(answer, 201)["signing_secret"]
    api.call("PATCH", f"/v1/endpoints/{own['id']}", {"headers": {"X-B": "canary-changed"}})
    rotate = f"/v1/endpoints/{own['id']}/rotate-secret"
    expect.ok(api.post(rotate, {"signing_secret": "canary of a rotation"}, headers={"Idempotency-Key": "r"}))
    made = expect.ok(api.post("/v1/api-keys", {"name": "CI"}, headers={"Idempotency-Key": "canary-key"}), 201)

    at_rest = everything_at_rest(resources)
    assert own["id"].encode() in at_rest
    assert b"canary-create" in at_rest  # an idempotency key is no secret: the search does find things
    for secret in (
        *("canary of our own choosing", "canary of a rotation", "canary-in-a-header", "canary-changed"),
        *(generated, generated.removeprefix("whsec_"), made["key"], api.key),
    ):
        assert secret.encode() not in at_rest
        assert base64.b64encode(secret.encode()) not in at_rest
    assert base64.b64decode(generated.removeprefix("whsec_")) not in at_rest


def test_a_ciphertext_of_another_row_does_not_open(api, resources):
    mine, theirs = create(api), create(api)
    with resources.transaction() as uow:
        uow.session.execute(
            text(
                "UPDATE endpoints SET signing_secret = (SELECT signing_secret FROM endpoints WHERE id = :theirs)"
                " WHERE id = :mine"
            ),
            {"mine": mine["id"], "theirs": theirs["id"]},
        )
    with capture_logs():
        answer = api.get(f"/v1/endpoints/{mine['id']}/secret")
    expect.problem(answer, 500, "internal_error")
    assert theirs["signing_secret"] not in answer.get_data(as_text=True)
