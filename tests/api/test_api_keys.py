"""API keys: made, shown once, listed and revoked."""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from app.api_keys import tokens
from app.core.clock import now
from tests.api import expect
from tests.api.steps import age_key, another_key, with_key

FIELDS = {
    *("id", "name", "prefix", "scopes", "allowed_cidrs", "status", "created_at"),
    *("last_used_at", "expires_at", "revoked_at", "rotated_from"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_new_key_works_at_once_and_says_what_it_is(api):
    made = expect.ok(api.post("/v1/api-keys", {"name": "CI"}), 201)

    assert set(made) == {*FIELDS, "key"}
    assert re.fullmatch(r"bbat_live_[0-9A-Za-z]{43}[0-9A-Za-z]{6}", made["key"])
    assert tokens.is_well_formed(made["key"])
    assert made["prefix"] == made["key"][:16]
    assert made["id"].startswith("key_")
    assert TIME.fullmatch(made["created_at"])
    assert abs(datetime.fromisoformat(made["created_at"]) - now()) < timedelta(seconds=5)
    assert made | {"id": "", "prefix": "", "created_at": "", "key": ""} == {
        "id": "",
        "name": "CI",
        "prefix": "",
        "scopes": ["*"],
        "allowed_cidrs": [],
        "status": "active",
        "created_at": "",
        "last_used_at": None,
        "expires_at": None,
        "revoked_at": None,
        "rotated_from": None,
        "key": "",
    }
    assert with_key(api, made["key"]).get("/v1/events").status_code == 200


def test_the_full_key_is_in_the_creating_answer_alone(api):
    made = api.post("/v1/api-keys", {"name": "CI"}).json
    for answer in (
        api.get("/v1/api-keys"),
        api.get(f"/v1/api-keys/{made['id']}"),
        api.post(f"/v1/api-keys/{made['id']}/revoke"),
    ):
        assert made["id"] in answer.get_data(as_text=True)
        assert made["key"] not in answer.get_data(as_text=True)
        assert '"key"' not in answer.get_data(as_text=True)


def test_no_column_holds_a_key(api, resources):
    made = api.post("/v1/api-keys", {"name": "CI"}).json
    _, random = made["key"].rsplit("_", 1)
    with resources.database.engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM api_keys WHERE id = :id"), made).mappings()
    assert row["prefix"] == made["prefix"]
    assert not [name for name, value in row.items() if name != "prefix" and random[:8] in str(value)]
    assert not [value for value in row.values() if isinstance(value, bytes) and random.encode() in value]


def test_no_two_keys_are_alike(api):
    made = [api.post("/v1/api-keys", {"name": "CI"}).json for _ in range(20)]
    assert len({key["key"] for key in made}) == len({key["id"] for key in made}) == 20


def test_names_are_kept_as_they_are_given(api):
    for name in (
        "a",
        "x" * 100,
        "\N{FIRE}" * 100,
        "Cl\u00e9 \u2116\u00a01",
        "Cle\u0301",
        "\u043a\u043b\u044e\u0447",
        "\u9375",
        "\u0645\u0641\u062a\u0627\u062d",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian needs the zero width non-joiner
        "\N{WOMAN}\u200d\N{PERSONAL COMPUTER} laptop",
        "\u05e9\u05dc\u05d5\u05dd\u200f!",  # Hebrew needs marks of direction
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "\N{HEAVY BLACK HEART}\ufe0f co\u00adop\u202f!",
        "\U0001fae9 \ue000",  # newer than our Unicode tables, and private
        "<script>alert(1)</script>",
        "'; DROP TABLE api_keys; --",
        "100 % \\ {{name}} ${name}",
        "  spaces  ",
    ):
        made = expect.ok(api.post("/v1/api-keys", {"name": name}), 201)
        assert made["name"] == name
        assert api.get(f"/v1/api-keys/{made['id']}").json["name"] == name


def test_names_that_nobody_can_read_are_refused(api):
    for name in (
        *("", " ", "\u00a0", "\u3000\u2003", "\u200d", "\u200c\u200d ", "\u3164", "\u2800 \u00ad"),
        *(
            "a\tb",
            "a\nb",
            "a\x7f",
            "a\x1b[31m",
            "a\x85",
            "a\u2028b",
            "a\u202eb",
            "a\u200bb",
            "\ufeffa",
            "a\u2066b",
        ),
        *("x" * 101, "\N{FIRE}" * 101),
        *(None, 5, True, ["a"], {"a": 1}),
    ):
        expect.invalid(api.post("/v1/api-keys", {"name": name}), "/name")
    expect.invalid(api.post("/v1/api-keys", {}), "/name")
    assert len(api.get("/v1/api-keys").json["data"]) == 1


def test_nul_is_refused_where_it_stands(api):
    expect.invalid(api.post("/v1/api-keys", {"name": "a\0b"}), "/name")
    expect.invalid(api.post("/v1/api-keys", {"name": "\0"}), "/name")
    whole = {"name": "CI", "scopes": ["events:read\0"], "allowed_cidrs": ["203.0.113.0/24\0"], "a\0": "\0"}
    expect.invalid(api.post("/v1/api-keys", whole), "/scopes/0", "/allowed_cidrs/0", "/a\0")
    expect.invalid(
        api.post("/v1/api-keys", {"name": "CI", "expires_at": "2099-12-31T23:59:59Z\0"}), "/expires_at"
    )
    assert len(api.get("/v1/api-keys").json["data"]) == 1


def test_an_expiry_is_a_moment_or_a_number_of_days(api):
    for given, expires_at in (
        ({"expires_at": "2099-12-31T23:59:59Z"}, "2099-12-31T23:59:59.000Z"),
        ({"expires_at": "2099-12-31T23:59:59.123456+02:00"}, "2099-12-31T21:59:59.123Z"),
        ({"expires_at": "9999-12-31T23:59:59.999Z"}, "9999-12-31T23:59:59.999Z"),
        ({"expires_at": None, "expires_in_days": None}, None),
    ):
        made = expect.ok(api.post("/v1/api-keys", {"name": "CI", **given}), 201)
        assert made["expires_at"] == expires_at
        assert api.get(f"/v1/api-keys/{made['id']}").json["expires_at"] == expires_at
    for days in (1, 3650):
        made = expect.ok(api.post("/v1/api-keys", {"name": "CI", "expires_in_days": days}), 201)
        lifetime = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
        assert lifetime == timedelta(days=days)


def test_a_bad_expiry(api):
    a_second_ago = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    for moment in (
        *(a_second_ago, "2020-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"),
        *("2099-12-31", "2099-12-31T23:59:59", "2099-02-30T00:00:00Z", "2099-12-31T24:00:00Z"),
        *("2099-12-31T23:59:59+25:00", "tomorrow", "", 4102444800, True, ["2099-12-31T23:59:59Z"]),
        *("\u0662099-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", " 2099-12-31T23:59:59Z"),
    ):
        expect.invalid(api.post("/v1/api-keys", {"name": "CI", "expires_at": moment}), "/expires_at")
    days: Any
    for days in (0, -1, 3651, 1.5, 30.0, "30", True, 10**30, []):
        answer = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": days})
        expect.invalid(answer, "/expires_in_days")
    both = {"name": "CI", "expires_at": "2099-12-31T23:59:59Z", "expires_in_days": 1}
    expect.invalid(api.post("/v1/api-keys", both), "/expires_in_days")
    assert len(api.get("/v1/api-keys").json["data"]) == 1


def test_an_expired_key_says_so(api, resources):
    made = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 1}).json
    age_key(resources, made["id"], expires_at=now() - timedelta(seconds=1))
    assert api.get(f"/v1/api-keys/{made['id']}").json["status"] == "expired"


def test_scopes(api):
    made = expect.ok(
        api.post("/v1/api-keys", {"name": "CI", "scopes": ["events:write", "events:read", "events:write"]}),
        201,
    )
    assert made["scopes"] == ["events:write", "events:read"]
    for scopes, pointer in (
        ([], "/scopes"),
        ("events:read", "/scopes"),
        (["events:read", "events:delete"], "/scopes/1"),
        (["EVENTS:READ"], "/scopes/0"),
        ([None], "/scopes/0"),
        ([["*"]], "/scopes/0"),
    ):
        expect.invalid(api.post("/v1/api-keys", {"name": "CI", "scopes": scopes}), pointer)


def test_a_key_gives_no_scope_that_it_lacks(api, resources):
    _, key = another_key(resources, api, scopes=["api_keys:read", "api_keys:write", "events:read"])
    limited = with_key(api, key)

    made = expect.ok(limited.post("/v1/api-keys", {"name": "heir"}), 201)
    assert sorted(made["scopes"]) == ["api_keys:read", "api_keys:write", "events:read"]
    made = expect.ok(limited.post("/v1/api-keys", {"name": "heir", "scopes": ["events:read"]}), 201)
    assert made["scopes"] == ["events:read"]

    before = len(api.get("/v1/api-keys").json["data"])
    for scopes in (["events:write"], ["events:read", "endpoints:read"], ["*"]):
        answer = limited.post("/v1/api-keys", {"name": "heir", "scopes": scopes})
        expect.problem(answer, 403, "insufficient_scope")
        assert f'error="insufficient_scope", scope="{scopes[-1]}"' in answer.headers["WWW-Authenticate"]
    assert len(api.get("/v1/api-keys").json["data"]) == before


def test_networks_are_kept_in_one_form(api):
    given = ["203.0.113.0/24", "198.51.100.7", "192.0.2.0/255.255.255.0", "2001:DB8:0::/32", "2001:db8::1"]
    made = expect.ok(api.post("/v1/api-keys", {"name": "CI", "allowed_cidrs": given}), 201)
    assert made["allowed_cidrs"] == [
        "203.0.113.0/24",
        "198.51.100.7/32",
        "192.0.2.0/24",
        "2001:db8::/32",
        "2001:db8::1/128",
    ]
    for cidr in (
        *(
            "",
            "203.0.113.1/24",
            "203.0.113.0/33",
            "203.0.113",
            "0x7f.1",
            "example.com",
            "203.0.113.0-203.0.113.9",
        ),
        *("fe80::1%eth0", "::ffff:203.0.113.0/120", "\u0662.0.0.0/8", None, 5, ["203.0.113.0/24"]),
    ):
        answer = api.post("/v1/api-keys", {"name": "CI", "allowed_cidrs": ["0.0.0.0/0", cidr]})
        expect.invalid(answer, "/allowed_cidrs/1")
    for value in (None, "203.0.113.0/24", ["203.0.113.0/24"] * 51):
        expect.invalid(api.post("/v1/api-keys", {"name": "CI", "allowed_cidrs": value}), "/allowed_cidrs")


def test_an_unknown_field_is_named(api):
    answer = api.post("/v1/api-keys", {"name": "CI", "expires": "2099-12-31", "workspace_id": "ws_1"})
    errors = expect.invalid(answer, "/expires", "/workspace_id")
    assert {error["code"] for error in errors} == {"unknown_field"}
    assert len(api.get("/v1/api-keys").json["data"]) == 1


def test_the_list_is_newest_first_and_without_revoked_ones(api, resources):
    made = {name: api.post("/v1/api-keys", {"name": name}).json for name in ("active", "expired", "revoked")}
    age_key(resources, made["expired"]["id"], expires_at=now() - timedelta(seconds=1))
    api.post(f"/v1/api-keys/{made['revoked']['id']}/revoke")

    def names(query: str = "") -> list[str]:
        return [key["name"] for key in expect.ok(api.get(f"/v1/api-keys{query}"))["data"]]

    assert names() == ["expired", "active", "test"]
    assert names("?status=active") == ["active", "test"]
    assert names("?status=expired") == ["expired"]
    assert names("?status=revoked") == ["revoked"]
    assert names("?status=revoked,expired,revoked") == ["revoked", "expired"]
    for status in ("", "gone", "active,", "ACTIVE", "active%20"):
        expect.invalid(api.get(f"/v1/api-keys?status={status}"), "/status")
    assert all(set(key) == FIELDS for key in api.get("/v1/api-keys").json["data"])


def test_revoking_is_final_and_the_same_again(api):
    made = api.post("/v1/api-keys", {"name": "CI"}).json
    revoked = expect.ok(api.post(f"/v1/api-keys/{made['id']}/revoke"))
    assert set(revoked) == FIELDS
    assert revoked["status"] == "revoked"
    assert TIME.fullmatch(revoked["revoked_at"])
    time.sleep(0.005)
    assert expect.ok(api.post(f"/v1/api-keys/{made['id']}/revoke", {})) == revoked
    assert api.get(f"/v1/api-keys/{made['id']}").json == revoked
    expect.problem(with_key(api, made["key"]).get("/v1/events"), 401, "api_key_revoked")


def test_an_expired_key_can_still_be_revoked(api, resources):
    made = api.post("/v1/api-keys", {"name": "CI", "expires_in_days": 1}).json
    age_key(resources, made["id"], expires_at=now() - timedelta(seconds=1))
    assert expect.ok(api.post(f"/v1/api-keys/{made['id']}/revoke"))["status"] == "revoked"


def test_a_key_can_revoke_itself(api):
    assert expect.ok(api.post(f"/v1/api-keys/{api.key_id}/revoke"))["status"] == "revoked"
    expect.problem(api.get("/v1/events"), 401, "api_key_revoked")


def test_revoking_takes_no_fields(api):
    expect.invalid(api.post(f"/v1/api-keys/{api.key_id}/revoke", {"force": True}), "/force")
    assert api.get(f"/v1/api-keys/{api.key_id}").json["status"] == "active"
