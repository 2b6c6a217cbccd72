"""Every route states what a key needs for it, and turns away every key that is not good enough."""

from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app.api_keys import service as api_keys
from app.api_keys import tokens
from app.core.clock import now
from app.core.unit_of_work import open_resources
from app.web import create_app
from bench.wire import round_trips
from tests.api.routes import ANY_KEY, KEYED, PUBLIC, SCOPES, path_of
from tests.api.steps import age_key, another_key, record_statements, with_key
from tests.conftest import Api

FREE = "/v1/event-types/message.read"  # a built-in type is not in the database: what is read, authentication reads

# The contract's table of 401 and 403, byte for byte: status, WWW-Authenticate, body. Only `request_id` varies.
REFUSALS: dict[str, tuple[int, str | None, bytes]] = {
    "missing": (
        401,
        'Bearer realm="botbat"',
        (
            b'{"type":"/problems/missing_api_key","title":"An API key is required","status":401,'
            b'"detail":"Send `Authorization: Bearer <your API key>`.","code":"missing_api_key",'
            b'"request_id":"REQUEST_ID"}'
        ),
    ),
    "another scheme": (
        401,
        'Bearer realm="botbat", error="invalid_token"',
        (
            b'{"type":"/problems/invalid_api_key","title":"The API key is not valid","status":401,'
            b'"detail":"Send one `Authorization: Bearer <your API key>` header.","code":"invalid_api_key",'
            b'"request_id":"REQUEST_ID"}'
        ),
    ),
    "malformed, mistyped or unknown": (
        401,
        'Bearer realm="botbat", error="invalid_token"',
        (
            b'{"type":"/problems/invalid_api_key","title":"The API key is not valid","status":401,'
            b'"detail":"The API key is not valid","code":"invalid_api_key","request_id":"REQUEST_ID"}'
        ),
    ),
    "revoked": (
        401,
        'Bearer realm="botbat", error="invalid_token"',
        (
            b'{"type":"/problems/api_key_revoked","title":"The API key was revoked","status":401,'
            b'"detail":"The API key was revoked","code":"api_key_revoked","request_id":"REQUEST_ID"}'
        ),
    ),
    "expired": (
        401,
        'Bearer realm="botbat", error="invalid_token"',
        (
            b'{"type":"/problems/api_key_expired","title":"The API key has expired","status":401,'
            b'"detail":"The API key has expired","code":"api_key_expired","request_id":"REQUEST_ID"}'
        ),
    ),
    "lacks the scope": (
        403,
        'Bearer realm="botbat", error="insufficient_scope", scope="SCOPE"',
        (
            b'{"type":"/problems/insufficient_scope","title":"The API key lacks a scope","status":403,'
            b'"detail":"This needs the scope `SCOPE`.","code":"insufficient_scope","request_id":"REQUEST_ID"}'
        ),
    ),
    "outside its networks": (
        403,
        None,
        (
            b'{"type":"/problems/ip_not_allowed","title":"The API key may not be used from this address",'
            b'"status":403,"detail":"The API key may not be used from this address","code":"ip_not_allowed",'
            b'"request_id":"REQUEST_ID"}'
        ),
    ),
}


def ask(api: Api, method: str, rule: str, authorization: str | None) -> TestResponse:
    """Send a request whose body would be refused too, if the key were not looked at first."""
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    body = b"{" if method in ("POST", "PUT", "PATCH") else None
    # Each route is asked from an address of its own, for failures of one address are limited.
    elsewhere = {"REMOTE_ADDR": f"198.51.100.{list(KEYED).index((method, rule))}"}
    return api.client.open(
        path_of(rule), method=method, headers=headers, data=body, environ_overrides=elsewhere
    )


def assert_refused(answer: TestResponse, name: str, scope: str = "") -> None:
    status, challenge, body = REFUSALS[name]
    challenges = [] if challenge is None else [challenge.replace("SCOPE", scope)]
    request_id = answer.headers["X-Request-Id"].encode()
    assert answer.status_code == status
    assert answer.headers.getlist("WWW-Authenticate") == challenges
    assert answer.data == body.replace(b"SCOPE", scope.encode()).replace(b"REQUEST_ID", request_id)
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"


def assert_every_route_refuses(api: Api, authorization: str | None, name: str) -> None:
    for method, rule in KEYED:
        assert_refused(ask(api, method, rule, authorization), name)


def test_every_route_is_public_or_states_its_scope(api):
    app = api.client.application
    stated = {}
    for rule in app.url_map.iter_rules():
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            stated[method, rule.rule] = getattr(app.view_functions[rule.endpoint], "scope", "public")

    assert stated == SCOPES | dict.fromkeys(PUBLIC, "public") | dict.fromkeys(ANY_KEY, "any key")
    assert set(SCOPES.values()) <= set(api_keys.SCOPES)


def test_public_routes_need_no_key(api):
    for method, rule in PUBLIC:
        path = path_of(rule)
        assert api.client.open(path, method=method, buffered=True).status_code in (200, 302), path


def test_a_request_without_a_key(api):
    assert_every_route_refuses(api, None, "missing")


def test_other_methods_of_a_route_need_the_key_too(api):
    for method, rule in SCOPES:
        for other in ("OPTIONS", "HEAD") if method == "GET" else ("OPTIONS",):
            answer = api.client.open(path_of(rule), method=other)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == REFUSALS["missing"][:2]


def test_what_is_no_key(api):
    for authorization in (
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer bbat_live_",
        "Bearer key_01kjpx8tcmej9svxw1fyydhpy2",
        "Bearer \xfc\xf1\xee",
        "Bearer bbat_live_" + "\xb9" * 49,  # digits, but not in ASCII
        "Bearer " + "a" * 10_000,
    ):
        assert_every_route_refuses(api, authorization, "malformed, mistyped or unknown")


def test_a_key_under_another_scheme(api):
    for authorization in (
        "",
        "Basic dXNlcjpwYXNz",
        *(f"{scheme}{api.key}" for scheme in ("", "Token ", "Basic ", "Bearer")),
    ):
        assert_every_route_refuses(api, authorization, "another scheme")


def test_a_key_with_a_wrong_checksum_is_refused_without_asking_the_database(api, resources):
    statements = record_statements(resources)
    mistyped = api.key[:-1] + ("0" if api.key[-1] != "0" else "1")
    assert_every_route_refuses(api, f"Bearer {mistyped}", "malformed, mistyped or unknown")
    assert statements == []


def test_an_unknown_key(api):
    assert_every_route_refuses(api, f"Bearer {tokens.generate()}", "malformed, mistyped or unknown")


def test_a_revoked_key(api, resources):
    key_id, key = another_key(resources, api)
    api.post(f"/v1/api-keys/{key_id}/revoke")
    assert_every_route_refuses(api, f"Bearer {key}", "revoked")


def test_a_key_is_revoked_for_every_process_at_once(api, resources, settings, doorbell):
    key_id, key = another_key(resources, api)
    elsewhere = open_resources(settings, doorbell=doorbell)
    client = create_app(elsewhere).test_client()

    def status() -> int:
        return client.get("/v1/events", headers={"Authorization": f"Bearer {key}"}).status_code

    assert status() == 200
    api.post(f"/v1/api-keys/{key_id}/revoke")
    assert status() == 401
    elsewhere.close()


def test_an_expired_key(api, resources):
    key_id, key = another_key(resources, api, expires_in_days=1)
    assert api.client.get("/v1/events", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    age_key(resources, key_id, expires_at=now() - timedelta(milliseconds=1))
    assert_every_route_refuses(api, f"Bearer {key}", "expired")


def test_a_revoked_key_that_has_expired_is_revoked(api, resources):
    key_id, key = another_key(resources, api)
    age_key(resources, key_id, expires_at=now() - timedelta(1), revoked_at=now())
    assert_every_route_refuses(api, f"Bearer {key}", "revoked")


def test_a_key_that_has_every_scope_but_the_one(api, resources):
    routes_of: dict[str, list[tuple[str, str]]] = {}
    for route, scope in SCOPES.items():
        routes_of.setdefault(scope, []).append(route)
    for scope, routes in routes_of.items():
        others = sorted({*SCOPES.values(), "deliveries:write"} - {scope})
        _, key = another_key(resources, api, scopes=others)
        for method, rule in routes:
            assert_refused(ask(api, method, rule, f"Bearer {key}"), "lacks the scope", scope)


def test_any_key_opens_what_needs_no_scope(api, resources):
    for scope in set(SCOPES.values()):
        _, key = another_key(resources, api, scopes=[scope])
        for method, rule in ANY_KEY:
            answer = api.client.open(path_of(rule), method=method, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200


def test_a_scope_opens_its_routes_alone(api, resources):
    for scope in set(SCOPES.values()):
        _, key = another_key(resources, api, scopes=[scope])
        for (method, rule), needed in SCOPES.items():
            answer = api.client.open(
                path_of(rule),
                method=method,
                headers={"Authorization": f"Bearer {key}", "Content-Type": "text/plain"},
                data=b"x" if method in ("POST", "PUT", "PATCH") else None,
            )
            assert (answer.status_code == 403) == (needed != scope), (scope, method, rule)


def test_a_key_from_outside_its_networks(api, resources):
    _, key = another_key(resources, api, allowed_cidrs=["203.0.113.0/24", "2001:db8::/32"])
    assert_every_route_refuses(api, f"Bearer {key}", "outside its networks")


def test_the_networks_of_a_key(api, resources):
    _, key = another_key(resources, api, allowed_cidrs=["203.0.113.0/24", "2001:db8::/32"])
    for address, status in {
        "203.0.113.1": 200,
        "::ffff:203.0.113.1": 200,
        "2001:db8::1": 200,
        "203.0.114.1": 403,
        "::ffff:203.0.114.1": 403,
        "2001:db9::1": 403,
        "": 403,
        "unix:": 403,
    }.items():
        answer = with_key(api, key).get("/v1/events", environ_overrides={"REMOTE_ADDR": address})
        assert answer.status_code == status, address


def test_the_client_cannot_say_where_it_comes_from(api, resources):
    _, key = another_key(resources, api, allowed_cidrs=["203.0.113.0/24"])
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "203.0.113.1", "X-Real-Ip": "203.0.113.1"}
    assert api.client.get("/v1/events", headers=headers).status_code == 403


def test_the_scheme_is_read_in_any_case(api):
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR", "Bearer "):
        assert (
            api.client.get("/v1/events", headers={"Authorization": f"{scheme} {api.key}"}).status_code == 200
        )


def test_the_key_itself_is_not_read_in_any_case(api):
    _, random = api.key.rsplit("_", 1)
    answer = api.client.get("/v1/events", headers={"Authorization": f"Bearer bbat_live_{random.swapcase()}"})
    assert_refused(answer, "malformed, mistyped or unknown")


def test_two_keys_are_none(api):
    bearer = ("Authorization", f"Bearer {api.key}")
    for headers in ([bearer, bearer], [bearer, ("Authorization", "Basic dXNlcjpwYXNz")]):
        answer = api.client.get("/v1/events", headers=headers)
        assert_refused(answer, "malformed, mistyped or unknown")


def test_a_key_counts_in_its_header_alone(api):
    query = "&".join(
        f"{name}={api.key}" for name in ("api_key", "key", "token", "access_token", "Authorization")
    )
    api.client.set_cookie("api_key", api.key)
    api.client.set_cookie("Authorization", f"Bearer {api.key}")
    answer = api.client.get(f"/v1/events?{query}", headers={"X-Api-Key": api.key})
    assert_refused(answer, "missing")
    assert api.key not in answer.get_data(as_text=True)
    assert "Set-Cookie" not in answer.headers


def test_the_first_use_of_a_key_shows_at_once_and_later_ones_once_a_minute(api, resources):
    key_id, key = another_key(resources, api)

    def use() -> Any:
        assert api.client.get("/v1/events", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        return api.get(f"/v1/api-keys/{key_id}").json["last_used_at"]

    assert api.get(f"/v1/api-keys/{key_id}").json["last_used_at"] is None
    first = use()
    assert first is not None
    assert use() == first
    age_key(resources, key_id, last_used_at=now() - timedelta(seconds=50))
    earlier = api.get(f"/v1/api-keys/{key_id}").json["last_used_at"]
    assert use() == earlier
    age_key(resources, key_id, last_used_at=now() - timedelta(seconds=61))
    assert use() >= first


def test_a_key_that_lacks_a_scope_was_used_and_one_that_is_refused_was_not(api, resources):
    short_id, short = another_key(resources, api, scopes=["endpoints:read"])
    revoked_id, revoked = another_key(resources, api)
    age_key(resources, revoked_id, revoked_at=now())
    far_id, far = another_key(resources, api, allowed_cidrs=["203.0.113.0/24"])
    for key in (short, revoked, far):
        api.client.get("/v1/events", headers={"Authorization": f"Bearer {key}"})
    used = {
        key_id: api.get(f"/v1/api-keys/{key_id}").json["last_used_at"]
        for key_id in (short_id, revoked_id, far_id)
    }
    assert [key_id for key_id, moment in used.items() if moment] == [short_id]


def test_authentication_costs_one_read(api, resources):
    api.get(FREE)  # notes the use of the key
    statements = record_statements(resources)
    for _ in range(3):
        assert api.get(FREE).status_code == 200
    assert len(statements) == 3
    assert all(statement.startswith("SELECT") and "FROM api_keys" in statement for statement in statements)


def test_authentication_costs_one_round_trip(api, resources):
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no wire")
    api.get(FREE)  # notes the use of the key
    with round_trips(resources.database) as counted:
        for _ in range(3):
            assert api.get(FREE).status_code == 200
    assert counted() == 3
