"""JSON of strangers comes through exactly, or is refused with a sentence that quotes none of it."""

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.errors import MalformedJson
from app.core.json_body import MAX_DEPTH, dumps, parse

# What PostgreSQL can keep and UTF-8 can carry.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
integers = st.integers() | st.integers(-(10**200), 10**200) | st.sampled_from([2**63, 2**64, -(2**63) - 1])
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    """Tell whether two values are equal and of the same types throughout: 1, 1.0 and True are three."""
    return repr(one) == repr(other)


@settings(deadline=None)
@given(values)
@example([2**64, 1.5, "1234567890123456789012"])
@example({"a": 10**4000})
@example("\u2028\x7f\U0010ffff")
@example(-0.0)
@example(1e-320)
@example(1.7976931348623157e308)
def test_whatever_json_can_say_comes_through_unchanged(value):
    for raw in (dumps(value), json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert same(parse(raw), value)
    assert same(parse(dumps(parse(dumps(value)))), value)


@settings(deadline=None)
@given(values)
def test_what_is_written_is_compact_utf_8(value):
    written = dumps(value)
    assert written == dumps(parse(written))
    assert json.loads(written.decode()) == value


@pytest.mark.parametrize("digits", range(14, 25))
def test_integers_around_64_bits_are_exact(digits):
    for number in (int("9" * digits), -int("9" * digits), 10**digits):
        assert parse(b'{"n": %d}' % number) == {"n": number}
        assert dumps({"n": number}) == b'{"n":%d}' % number


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1',
        b'{"a":1}}',
        b"{'a':1}",
        b'{"a":1,}',
        b"[1 2]",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"n": 12345678901234567890, "a": NaN}',
        b'{"n": 12345678901234567890, "a": -Infinity}',
        b'{"n": 12345678901234567890, "a": 1e999}',
        b"1e999",
        b"9" * 5000,
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'["\\udfff", 12345678901234567890]',
        b'{"\\ud800": 12345678901234567890}',
        b'"\\x41"',
        b'"\n"',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"// comment\n{}",
        b"nul",
        b"undefined",
    ],
)
def test_what_is_no_json_is_refused(raw):
    with pytest.raises(MalformedJson, match=r"^The body is not valid JSON in UTF-8\.$"):
        parse(raw)


@pytest.mark.parametrize(
    "raw", [rb'"\u0000"', rb'{"a\u0000b": 1}', rb'"\\\u0000"', rb'[12345678901234567890, "\u0000"]']
)
def test_nul_is_refused(raw):
    with pytest.raises(MalformedJson, match="NUL"):
        parse(raw)


def test_an_escaped_backslash_before_u0000_is_no_nul():
    assert parse(rb'"\\u0000"') == "\\u0000"
    assert parse(rb'"\\\\u0000"') == r"\\u0000"


@pytest.mark.parametrize("number", ["1", "12345678901234567890"])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded_for_every_parser(start, end, number):
    deepest = start * MAX_DEPTH + number + end * MAX_DEPTH
    assert dumps(parse(deepest.encode())) == deepest.encode()
    for depth in (MAX_DEPTH + 1, 900, 1100, 100_000):
        with pytest.raises(MalformedJson):
            parse((start * depth + number + end * depth).encode())


def test_many_shallow_containers_are_not_deep():
    value: list[list[object]] = [[{}, []]] * 1000
    assert parse(dumps(value)) == value


@settings(deadline=None)
@given(st.binary())
@example(b'"' + b"\\" * 99 + b'u0000"')
def test_no_bytes_break_the_parser(raw):
    with contextlib.suppress(MalformedJson):
        parse(raw)


def test_the_message_quotes_nothing_of_the_body():
    with pytest.raises(MalformedJson) as refusal:
        parse(b'{"password": "canary-4711" oops}')
    assert "canary" not in f"{refusal.value} {refusal.value.detail}"
