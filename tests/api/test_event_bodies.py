"""What comes in is what is delivered; what cannot be is refused, and nothing of it is kept."""

import io
import json
from typing import Any

import pytest
from sqlalchemy import select

from app.core.unit_of_work import Resources
from app.events.models import Event
from tests.api import expect
from tests.conftest import Api

LIMIT = 256 * 1024
LONG_NUMBER = "12345678901234567890123"  # beyond 64 bits: read by another parser than the rest


def publish_raw(api: Api, body: str | bytes, content_type: str = "application/json") -> Any:
    return api.post("/v1/events", data=body, content_type=content_type)


def event_with(data: str) -> str:
    return f'{{"type":"contact.created","data":{data}}}'


def stored_bodies(resources: Resources) -> list[bytes]:
    with resources.transaction(write=False) as uow:
        return list(uow.session.scalars(select(Event.body).order_by(Event.id)))


def exactly(value: Any) -> str:
    """Tell apart what == does not: 1 and 1.0 and True, 0.0 and -0.0."""
    return repr(value)


@pytest.mark.parametrize("beside", ["null", LONG_NUMBER])
def test_values_survive_to_the_reader_and_into_the_body_that_is_sent(api, resources, beside):
    numbers = (
        *("0", "-0.0", "1", "1.0", "-1", "0.1", "1E5", "1e-5", "0.30000000000000004", "3.141592653589793"),
        *("9007199254740991", "9007199254740993", "-9007199254740993", "9223372036854775807"),
        *("-9223372036854775808", "18446744073709551615", "1e22", "1.7976931348623157e308", "5e-324"),
        *("2.2250738585072014e-308", "123456789.123456789", "1e400".replace("400", "300")),
    )
    texts = (
        *(
            '""',
            '"\\u00e9\\u0301 \\ud83d\\udd25 \U0001f525"',
            '"\\u2028\\u2029"',
            '"\\"\\\\\\/\\b\\f\\n\\r\\t"',
        ),
        *(
            '"\\u0001\\u001f\\u007f"',
            '"\\\\u0000"',
            '"</script>"',
            '"\ufeff\u202e\uffff"',
            "true",
            "false",
            "null",
        ),
    )
    keys = '{"": 1, "a/b": 2, "~": 3, "__proto__": 4, "$ref": "#", "\U0001f525": 5, "b": 1, "a": 2}'
    data = f'{{"beside":{beside},"own":[{",".join((*numbers, *texts))},{keys},[],{{}},[[]]]}}'
    answer = publish_raw(api, event_with(data))

    sent = json.loads(data)
    event = json.loads(api.get(f"/v1/events/{answer.json['id']}").data)
    assert exactly(event["data"]) == exactly(sent)
    (body,) = stored_bodies(resources)
    assert exactly(json.loads(body)) == exactly(
        {
            "id": answer.json["id"],
            "type": "contact.created",
            "timestamp": answer.json["occurred_at"],
            "data": sent,
        }
    )


def test_integers_of_any_length_survive(api, resources):
    numbers = ["18446744073709551616", "-9223372036854775809", LONG_NUMBER, "-" + LONG_NUMBER, "9" * 4300]
    answer = expect.ok(publish_raw(api, event_with(f'{{"own":[{",".join(numbers)}]}}')), 202)
    shown = api.get(f"/v1/events/{answer['id']}").get_data(as_text=True)
    (body,) = stored_bodies(resources)
    for number in numbers:
        assert number in shown
        assert number.encode() in body


def test_a_schema_judges_long_integers_like_others(api):
    sent = event_with(f'{{"counts":{{"sent":{LONG_NUMBER},"failed":-{LONG_NUMBER}}}}}')
    answer = publish_raw(api, sent.replace("contact.created", "campaign.completed"))
    expect.invalid(answer, "/data/counts/failed", code="payload_invalid")


def test_the_body_is_compact_utf8_and_keeps_the_order_of_fields(api, resources):
    publish_raw(api, event_with('{ "z" : "\\u00fc\U0001f525" , "a" : [ 1 , 2 ] }'))
    (body,) = stored_bodies(resources)
    assert body.endswith(b',"data":' + '{"z":"\u00fc\U0001f525","a":[1,2]}}'.encode())
    assert body.startswith(b'{"id":"evt_')


MALFORMED = {
    "truncated": b'{"type":"contact.created","data":{"a":1',
    "nothing but space": b" \n",
    "trailing comma": event_with('{"a":1,}').encode(),
    "trailing comma in a list": event_with('{"a":[1,]}').encode(),
    "two values": event_with("{}").encode() * 2,
    "text after it": event_with("{}").encode() + b"x",
    "single quotes": event_with("{'a':1}").encode(),
    "a comment": event_with("{/**/}").encode(),
    "no quotes": event_with("{a:1}").encode(),
    "NaN": event_with('{"a":NaN}').encode(),
    "Infinity": event_with('{"a":Infinity}').encode(),
    "-Infinity": event_with('{"a":-Infinity}').encode(),
    "1e400": event_with('{"a":1e400}').encode(),
    "-1e400": event_with('{"a":-1e400}').encode(),
    "a float too large to write out": event_with(f'{{"a":{"9" * 400}.0}}').encode(),
    "5000 digits": event_with(f'{{"a":{"9" * 5000}}}').encode(),
    "a leading zero": event_with('{"a":01}').encode(),
    "a leading plus": event_with('{"a":+1}').encode(),
    "hexadecimal": event_with('{"a":0x1}').encode(),
    "no digit after the point": event_with('{"a":1.}').encode(),
    "a lone surrogate": event_with('{"a":"\\ud800"}').encode(),
    "a lone low surrogate": event_with('{"a":"\\udc00\\ud800"}').encode(),
    "a lone surrogate in a name": event_with('{"\\ud800":1}').encode(),
    "an encoded surrogate": event_with('{"a":"SURROGATE"}').encode().replace(b"SURROGATE", b"\xed\xa0\x80"),
    "NUL escaped": event_with('{"a":"x\\u0000"}').encode(),
    "NUL escaped after a backslash": event_with('{"a":"\\\\\\u0000"}').encode(),
    "NUL in a name": event_with('{"\\u0000":1}').encode(),
    "NUL": event_with('{"a":"\0"}').encode(),
    "a line break in a string": event_with('{"a":"\n"}').encode(),
    "an unknown escape": event_with('{"a":"\\x41"}').encode(),
    "no UTF-8": event_with('{"a":"x"}').encode().replace(b"x", b"\xff"),
    "an overlong form": event_with('{"a":"x"}').encode().replace(b"x", b"\xc0\xaf"),
    "UTF-16": event_with("{}").encode("utf-16"),
    "a byte order mark": event_with("{}").encode("utf-8-sig"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xab\xae\x05\x00C\xbf\xa6\xa3\x02\x00\x00\x00",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
}


def test_what_is_no_json(api, resources, doorbell):
    for name, body in MALFORMED.items():
        # Beside a number beyond 64 bits it meets the other parser.
        for sent in (body, body.replace(b'"data":{', b'"data":{"number":' + LONG_NUMBER.encode() + b",")):
            problem = expect.problem(publish_raw(api, sent), 400, "malformed_json")
            assert len(problem["detail"]) < 100, name
            assert "contact.created" not in problem["detail"]
    assert stored_bodies(resources) == []
    assert doorbell.rings == []


def test_one_level_too_deep(api, resources):
    expect.problem(publish_raw(api, event_with('{"a":' * 64 + "1" + "}" * 64)), 400, "malformed_json")
    expect.problem(publish_raw(api, event_with('{"a":' + "[" * 63 + "]" * 63 + "}")), 400, "malformed_json")
    assert stored_bodies(resources) == []


def test_as_deep_as_can_be(api, resources):
    for data in ('{"a":' * 63 + "1" + "}" * 63, '{"a":' + "[" * 62 + "]" * 62 + "}"):
        receipt = expect.ok(publish_raw(api, event_with(data)), 202)
        assert json.loads(api.get(f"/v1/events/{receipt['id']}").data)["data"] == json.loads(data)
    expect.problem(publish_raw(api, event_with('{"a":' + "[" * 64 + "]" * 64 + "}")), 400, "malformed_json")
    # Brackets inside strings are no levels, and neither are siblings.
    expect.ok(publish_raw(api, event_with('{"a":"' + "[{" * 500 + '"}')), 202)
    expect.ok(publish_raw(api, event_with('{"a":[' + "[]," * 500 + "[]]}")), 202)


def test_a_body_of_256_kibibytes_and_one_byte_more(api, resources):
    padding = LIMIT - len(event_with('{"a":""}'))
    expect.ok(publish_raw(api, event_with(f'{{"a":"{"x" * padding}"}}')), 202)
    expect.problem(publish_raw(api, event_with(f'{{"a":"{"x" * (padding + 1)}"}}')), 413, "payload_too_large")
    expect.problem(publish_raw(api, b"x" * 10_000_000), 413, "payload_too_large")
    assert len(stored_bodies(resources)) == 1


def test_a_body_that_does_not_say_how_long_it_is(api, resources):
    def publish_chunked(body: bytes) -> Any:
        environ = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
        return api.post("/v1/events", content_type="application/json", environ_overrides=environ)

    expect.ok(publish_chunked(event_with("{}").encode()), 202)
    expect.problem(publish_chunked(event_with(f'{{"a":"{"x" * LIMIT}"}}').encode()), 413, "payload_too_large")
    assert len(stored_bodies(resources)) == 1


def test_a_small_body_that_is_written_large(api, resources):
    # 250 KiB as it came, 800 KiB as it would be delivered.
    body = event_with('{"a":[' + ",".join(["1e15"] * 50_000) + "]}")
    assert len(body) < LIMIT
    expect.problem(publish_raw(api, body), 413, "event_too_large")
    assert stored_bodies(resources) == []


def test_the_body_is_declared_as_json(api, resources):
    body = event_with("{}")
    for content_type in (
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/x+json",
    ):
        expect.ok(publish_raw(api, body, content_type), 202)
    for content_type in (
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ):
        expect.problem(publish_raw(api, body, content_type), 415, "unsupported_media_type")
    answer = api.client.post("/v1/events", data=body, headers={"Authorization": f"Bearer {api.key}"})
    expect.problem(answer, 415, "unsupported_media_type")
    assert len(stored_bodies(resources)) == 4
