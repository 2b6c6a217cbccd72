"""What the service tells of itself: enough to let its deliveries in and to verify them."""

import base64
import hashlib
import hmac

import pytest

from app.core.unit_of_work import open_resources
from app.web import VERSION, create_app
from config.settings import load_settings
from tests import receivers
from tests.flows.steps import make_endpoint, publish


@pytest.fixture
def meta_with(api, monkeypatch, doorbell):
    """Give what a deployment with these settings tells."""

    def ask(**variables: str):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        elsewhere = open_resources(load_settings(), doorbell=doorbell)
        answer = (
            create_app(elsewhere)
            .test_client()
            .get("/v1/meta", headers={"Authorization": f"Bearer {api.key}"})
        )
        elsewhere.close()
        assert answer.status_code == 200
        return answer

    return ask


def test_nothing_is_stated_unless_the_operator_does(api):
    answer = api.get("/v1/meta").json
    assert answer.keys() == {"egress_addresses", "via_proxy", "signature_schemes", "versions"}
    assert (answer["egress_addresses"], answer["via_proxy"]) == ([], False)
    assert answer["versions"] == {"api": "v1", "service": VERSION}


def test_the_operator_s_addresses_are_told_as_blocks(meta_with):
    stated = "203.0.113.7, 198.51.100.0/28,2001:db8::/48"
    assert meta_with(BOTBAT_EGRESS_ADDRESSES=stated).json["egress_addresses"] == [
        "203.0.113.7/32",
        "198.51.100.0/28",
        "2001:db8::/48",
    ]


def test_that_there_is_a_proxy_is_told_and_nothing_else_of_it(meta_with):
    answer = meta_with(BOTBAT_EGRESS_PROXY="http://canaryuser:canarypw@canaryhost:3128")
    assert answer.json["via_proxy"] is True
    assert "canary" not in answer.get_data(as_text=True)
    assert "3128" not in answer.get_data(as_text=True)


OWN_SECRET = "a customer's own secret"
ENCODED = {"hex": bytes.hex, "base64": lambda digest: base64.b64encode(digest).decode()}


@pytest.mark.parametrize("secret", [None, OWN_SECRET])
def test_a_delivery_is_verified_by_what_is_told_alone(api, drain, secret):
    schemes = api.get("/v1/meta").json["signature_schemes"]
    with receivers.ok() as receiver:
        made = make_endpoint(api, receiver, signing_secret=secret) if secret else make_endpoint(api, receiver)
        publish(api)
        drain()
    [request] = receiver.requests

    keys = {
        "botbat": made["signing_secret"].encode(),
        "standard-webhooks": secret.encode()
        if secret
        else base64.b64decode(made["signing_secret"].removeprefix("whsec_")),
    }
    assert {scheme["name"] for scheme in schemes} == set(keys)
    for scheme in schemes:
        given = request.header(scheme["signature_header"]) or ""
        if scheme["timestamp_header"]:
            timestamp = request.header(scheme["timestamp_header"])
        else:
            timestamp = given.partition(",")[0].removeprefix("t=")
        values = {"timestamp": timestamp, "body": request.body.decode()}
        if scheme["id_header"]:
            values["id"] = request.header(scheme["id_header"])
        content = scheme["signed_content"].format(**values).encode()
        assert scheme["algorithm"] == "HMAC-SHA256"
        signature = ENCODED[scheme["encoding"]](hmac.digest(keys[scheme["name"]], content, hashlib.sha256))
        always = scheme["signature_format"].partition("[")[0]
        assert given == always.format(timestamp=timestamp, signature=signature)
        assert scheme["tolerance_seconds"] == 300
