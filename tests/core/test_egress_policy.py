"""Promises about what may be called: no spelling of an inner address passes, no ordinary URL is refused."""

import ipaddress
import pickle
import string
from urllib.parse import urlsplit

import pytest
import urllib3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core import egress_policy
from app.core.egress_policy import EgressPolicy, UrlRefused, origin_of, parse_dev_origin

POLICY = EgressPolicy()
DEV = EgressPolicy(
    dev_origins=frozenset(
        {"https://localhost:9443", "https://127.0.0.1:9444", "https://[::1]:22", "https://localhost"}
    )
)


def words(text: str) -> list[str]:
    return text.split()


def network(text: str) -> egress_policy.Network:
    return ipaddress.ip_network(text)


def accepts(url: str) -> bool:
    try:
        POLICY.check_url(url)
    except UrlRefused:
        return False
    return True


def refusal_of(url: str, policy: EgressPolicy = POLICY) -> str:
    with pytest.raises(UrlRefused) as caught:
        policy.check_url(url)
    return caught.value.code


# --- The address table, told a second time: as integer comparisons, sharing nothing with the module. ---


def v4(a: int, b: int = 0, c: int = 0, d: int = 0) -> int:
    return a << 24 | b << 16 | c << 8 | d


DENIED_V4_RANGES = [  # first, last
    (v4(0), v4(0, 255, 255, 255)),
    (v4(10), v4(10, 255, 255, 255)),
    (v4(100, 64), v4(100, 127, 255, 255)),
    (v4(127), v4(127, 255, 255, 255)),
    (v4(168, 63, 129, 16), v4(168, 63, 129, 16)),
    (v4(169, 254), v4(169, 254, 255, 255)),
    (v4(172, 16), v4(172, 31, 255, 255)),
    (v4(192, 0, 0), v4(192, 0, 0, 255)),
    (v4(192, 0, 2), v4(192, 0, 2, 255)),
    (v4(192, 31, 196), v4(192, 31, 196, 255)),
    (v4(192, 52, 193), v4(192, 52, 193, 255)),
    (v4(192, 88, 99), v4(192, 88, 99, 255)),
    (v4(192, 168), v4(192, 168, 255, 255)),
    (v4(192, 175, 48), v4(192, 175, 48, 255)),
    (v4(198, 18), v4(198, 19, 255, 255)),
    (v4(198, 51, 100), v4(198, 51, 100, 255)),
    (v4(203, 0, 113), v4(203, 0, 113, 255)),
    (v4(224), v4(255, 255, 255, 255)),
]

DENIED_V6_RANGES = [  # first, last; between them lies what may be called
    (0, (0x2000 << 112) - 1),
    (0x2001 << 112, (0x2001_0200 << 96) - 1),
    (0x2001_0DB8 << 96, (0x2001_0DB9 << 96) - 1),
    (0x2002 << 112, (0x2003 << 112) - 1),
    (0x2620_004F_8000 << 80, (0x2620_004F_8001 << 80) - 1),
    (0x3FFF << 112, (0x3FFF_1000 << 96) - 1),
    (0x4000 << 112, (1 << 128) - 1),
]


def may_call_v4(number: int) -> bool:
    return not any(first <= number <= last for first, last in DENIED_V4_RANGES)


def may_call_v6(number: int) -> bool:
    if number >> 32 == 0xFFFF:
        return may_call_v4(number & 0xFFFFFFFF)
    return not any(first <= number <= last for first, last in DENIED_V6_RANGES)


def edges(ranges: list[tuple[int, int]], top: int) -> list[int]:
    """First and last of each range, and their neighbours outside it."""
    numbers = {number for first, last in ranges for number in (first - 1, first, last, last + 1)}
    return sorted(number for number in numbers if 0 <= number <= top)


@pytest.mark.parametrize(
    "number", edges(DENIED_V4_RANGES, 2**32 - 1), ids=lambda n: str(ipaddress.IPv4Address(n))
)
def test_every_edge_of_the_ipv4_table_is_where_the_rule_puts_it(number):
    address = str(ipaddress.IPv4Address(number))
    assert POLICY.allows_address(address) is may_call_v4(number)
    assert POLICY.allows_address(f"::ffff:{address}") is may_call_v4(number)


@pytest.mark.parametrize(
    "number", edges(DENIED_V6_RANGES, 2**128 - 1), ids=lambda n: str(ipaddress.IPv6Address(n))
)
def test_every_edge_of_the_ipv6_table_is_where_the_rule_puts_it(number):
    assert POLICY.allows_address(str(ipaddress.IPv6Address(number))) is may_call_v6(number)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32 - 1) | st.sampled_from(DENIED_V4_RANGES).flatmap(lambda r: st.integers(*r)))
def test_any_ipv4_address_is_judged_as_the_ranges_say(number):
    address = str(ipaddress.IPv4Address(number))
    assert POLICY.allows_address(address) is may_call_v4(number)
    assert POLICY.allows_address(f"::ffff:{address}") is may_call_v4(number)
    assert accepts(f"https://{address}/") is may_call_v4(number)


@settings(max_examples=1000, deadline=None)
@given(
    st.integers(0, 2**128 - 1)
    | st.integers(0x2000 << 112, (0x4000 << 112) - 1)
    | st.integers(0xFFFF << 32, (0x10000 << 32) - 1)
    | st.sampled_from(DENIED_V6_RANGES).flatmap(lambda r: st.integers(*r))
)
def test_any_ipv6_address_is_judged_as_the_ranges_say_in_each_spelling(number):
    address = ipaddress.IPv6Address(number)
    for spelling in (address.compressed, address.exploded, address.exploded.upper()):
        assert POLICY.allows_address(spelling) is may_call_v6(number)
        assert accepts(f"https://[{spelling}]/") is may_call_v6(number)


@pytest.mark.parametrize(
    ("address", "what_it_is"),
    [
        ("127.0.0.1", "this machine"),
        ("0.0.0.0", "this machine, on Linux"),
        ("169.254.169.254", "cloud metadata"),
        ("168.63.129.16", "Azure's platform"),
        ("100.100.100.200", "Alibaba's metadata, in carrier-grade NAT space"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "IPv4-compatible loopback"),
        ("::ffff:10.0.0.1", "IPv4-mapped private"),
        ("::ffff:0:127.0.0.1", "IPv4-translated loopback, RFC 2765"),
        ("64:ff9b::8.8.8.8", "NAT64, whatever it carries"),
        ("64:ff9b:1::1", "local NAT64, RFC 8215"),
        ("100::1", "discard, RFC 6666"),
        ("2001:0:4136:e378::1", "Teredo"),
        ("2002:7f00:1::1", "6to4 carrying loopback"),
        ("5f00::1", "SRv6 segments, RFC 9602"),
        ("fd00:ec2::254", "Amazon's metadata"),
        ("fe80::1", "link-local"),
        ("fec0::1", "site-local, deprecated by RFC 3879"),
        ("ff02::1", "multicast"),
    ],
)
def test_addresses_that_are_nobodys_public_receiver_are_refused(address, what_it_is):
    assert not POLICY.allows_address(address), what_it_is


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "100.63.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_allowed(address):
    assert POLICY.allows_address(address)


@pytest.mark.parametrize(
    "text",
    [
        *words("""
            8.8.8 8.8.8.08 0x8.8.8.8 134744072 8.8.8.8/32 dns.google [2606:4700::1111] 2606:4700::1111%
            2606:4700::1111%eth0 fe80::1%lo 2606:4700::1111::
        """),
        *["", " ", "8.8.8.8 ", "8.8.8.8\n", "8.8.8.8\x00", "\uff18.8.8.8"],
    ],
)
def test_text_that_is_no_plain_address_is_refused(text):
    assert not POLICY.allows_address(text)


# --- What the operator adds. ---


def test_an_allowed_cidr_opens_a_private_block_and_nothing_beside_it():
    policy = EgressPolicy(allow_cidrs=(network("10.20.0.0/16"), network("fd00:1::/32")))
    assert policy.allows_address("10.20.255.255")
    assert policy.allows_address("::ffff:10.20.0.1")
    assert policy.allows_address("fd00:1::5")
    assert not policy.allows_address("10.21.0.0")
    assert not policy.allows_address("fd00:2::5")
    assert not policy.allows_address("fd00:1::5%eth0")
    assert policy.check_url("https://10.20.0.1:8443/x") == "https://10.20.0.1:8443/x"
    assert policy.check_url("https://[FD00:1:0::5]") == "https://[fd00:1::5]/"
    assert refusal_of("https://10.21.0.1/", policy) == "address_not_allowed"


def test_an_allowed_cidr_opens_no_refused_name_and_no_refused_port():
    policy = EgressPolicy(allow_cidrs=(network("0.0.0.0/0"), network("::/0")))
    assert refusal_of("https://localhost/", policy) == "host_not_allowed"
    assert refusal_of("https://10.0.0.1:22/", policy) == "port_not_allowed"


def test_a_denied_cidr_wins_over_the_table_over_allowed_cidrs_and_over_development():
    everything = (network("0.0.0.0/0"), network("::/0"))
    policy = EgressPolicy(
        allow_cidrs=everything,
        deny_cidrs=(network("8.8.0.0/16"), network("127.0.0.0/8"), network("2606:4700::/32")),
        dev_origins=frozenset({"https://127.0.0.1:9443"}),
    )
    assert not policy.allows_address("8.8.8.8")
    assert not policy.allows_address("::ffff:8.8.8.8")
    assert not policy.allows_address("2606:4700::1111")
    assert policy.allows_address("8.9.8.8")
    assert not policy.allows_address("127.0.0.1", origin="https://127.0.0.1:9443")
    assert refusal_of("https://127.0.0.1:9443/", policy) == "address_not_allowed"
    assert refusal_of("https://8.8.8.8/", policy) == "address_not_allowed"


def test_a_cidr_that_could_never_match_is_an_error_at_start():
    mapped = (network("::ffff:10.0.0.0/104"),)
    with pytest.raises(ValueError, match="IPv4 form"):
        EgressPolicy(allow_cidrs=mapped)
    with pytest.raises(ValueError, match="IPv4 form"):
        EgressPolicy(deny_cidrs=mapped)


# --- The shape of a URL. ---


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://example.com", "https://example.com/"),
        ("https://Hooks.EXAMPLE.com/Path?Q=1", "https://hooks.example.com/Path?Q=1"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("https://example.com:8443", "https://example.com:8443/"),
        ("https://example.com:1024/", "https://example.com:1024/"),
        ("https://example.com:65535/", "https://example.com:65535/"),
        ("https://example.com?x=1", "https://example.com/?x=1"),
        ("https://example.com?", "https://example.com/?"),
        ("https://example.com//a/../b?c=[d]&e=a@b|{f}", "https://example.com//a/../b?c=[d]&e=a@b|{f}"),
        ("https://example.com/@127.0.0.1/:22", "https://example.com/@127.0.0.1/:22"),
        ("https://example.com?@127.0.0.1", "https://example.com/?@127.0.0.1"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://1.example.com/", "https://1.example.com/"),
        # This one resolves inwards, which is for allows_address to find.
        ("https://127.0.0.1.nip.io/", "https://127.0.0.1.nip.io/"),
        ("https://my-local.host/", "https://my-local.host/"),
        ("https://notlocalhost.dev/", "https://notlocalhost.dev/"),
        ("https://local.example.com/", "https://local.example.com/"),
        ("https://8.8.8.8:8443", "https://8.8.8.8:8443/"),
        ("https://[2606:4700:0:0::0:1111]/", "https://[2606:4700::1111]/"),
        ("https://[2606:4700::8.8.8.8]:443", "https://[2606:4700::808:808]/"),
        (f"https://{'a' * 63}.example/", f"https://{'a' * 63}.example/"),
    ],
)
def test_an_ordinary_url_is_stored_normalised(url, stored):
    assert POLICY.check_url(url) == stored


@pytest.mark.parametrize(
    "url",
    [
        "",
        *words("""
            example.com http://example.com/ HTTPS://example.com/ Https://example.com/ https:/example.com
            https:example.com //example.com/ ftp://example.com/ file:///etc/passwd wss://example.com/
            httpss://example.com javascript:alert(1) gopher://127.0.0.1:6379/_INFO view-source:https://a.example
        """),
    ],
)
def test_anything_but_lower_case_https_is_refused(url):
    assert refusal_of(url) == "https_required"


@pytest.mark.parametrize(
    "url", ["http://localhost:9443/", "http://127.0.0.1:9444/", "HTTPS://localhost:9443/"]
)
def test_development_does_not_bend_the_https_rule(url):
    assert refusal_of(url, DEV) == "https_required"


@pytest.mark.parametrize(
    "odd",
    [*map(chr, range(0x21)), "\\", "\x7f", "\x80", "\xa0", "\xad", "é", "。", "\uff0f", "\u200b", "\ufeff"],
)
@pytest.mark.parametrize(
    "url", words("{}https://a.example/ https://exa{}mple.com/ https://a.example/a{}b https://a.example/{}")
)
def test_space_control_backslash_and_non_ascii_are_refused_wherever_they_stand(url, odd):
    assert refusal_of(url.format(odd)) == "invalid_url"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/#a", "fragment_not_allowed"),
        ("https://example.com#@127.0.0.1/", "fragment_not_allowed"),
        ("https://user@example.com/", "user_info_not_allowed"),
        ("https://user:pass@example.com/", "user_info_not_allowed"),
        ("https://@example.com/", "user_info_not_allowed"),
        ("https://example.com@127.0.0.1/", "user_info_not_allowed"),
        ("https://example.com:443@127.0.0.1/", "user_info_not_allowed"),
        ("https://a@b@example.com/", "user_info_not_allowed"),
        ("https://localhost:9443@example.com/", "user_info_not_allowed"),
    ],
)
def test_fragments_and_user_info_are_refused(url, code):
    assert refusal_of(url) == code
    assert refusal_of(url, DEV) == code


@pytest.mark.parametrize(
    "host",
    [
        *words("""
            . .. example..com .example.com example.com. exa_mple.com -example.com example-.com example.-com
            %65xample.com example.com%00 example.com%2f example.com%252f 127.0.0.1%00.example.com
            127%E3%80%820.0.1 exa*mple.com example.com;x example.com&x example.com|x example.com"
            a,b.example (example.com) {example.com} $x.example <example.com> a+b.example ~a.example
            [example.com] [8.8.8.8] [] [::1 ::1] ::1 2606:4700::1111 [2606:4700::1111]x
            [2606:4700::1111].example x[2606:4700::1111] [[::1]]
            [2606:4700::1111%25eth0] [2606:4700::1111%eth0] [v1.a] [:::]
            [2606:4700::11111] [::ffff:08.8.8.8]
        """),
        *["", f"{'a' * 64}.example"],
    ],
)
def test_a_host_that_is_no_strict_name_or_literal_is_refused(host):
    assert refusal_of(f"https://{host}/") == "invalid_host"


@pytest.mark.parametrize(
    "host",
    words("""
        127.1 127.0.1 2130706433 017700000001 0x7f000001 0X7F000001 0x7f.1 0x7f.0.0.0x1 0177.0.0.1 127.0.0.01
        127.0.0.1. 127.0.0.1.. 127.0.0.256 127.0.0.1.1 00000127.0.0.1 1.2.3 0 0x 0x7f 8.8.8.0x8 8.8.2056
        4294967296 example.1 example.0x1 example.0xzz example.com.08
    """),
)
def test_a_number_that_some_resolver_reads_as_an_address_is_no_name(host):
    assert refusal_of(f"https://{host}/") == "invalid_host"


@pytest.mark.parametrize(
    "host", ["①②⑦.⓪.⓪.①", "\uff11\uff12\uff17.0.0.1", "127。0。0。1", "\uff4cocalhost.example", "١٢٧.0.0.1"]
)
def test_digits_and_letters_of_other_alphabets_are_refused(host):
    assert refusal_of(f"https://{host}/") == "invalid_url"


@pytest.mark.parametrize(
    "host",
    words("""
        127.0.0.1 0.0.0.0 10.1.2.3 169.254.169.254 192.168.1.1 [::1] [::] [0:0:0:0:0:0:0:1] [0::01]
        [::ffff:127.0.0.1] [::FFFF:7f00:1] [::ffff:169.254.169.254] [::127.0.0.1] [64:ff9b::7f00:1]
        [2002:7f00:1::] [fe80::1] [FEC0::1] [fd00:ec2::254]
    """),
)
def test_a_literal_of_an_inner_address_is_refused_in_any_spelling(host):
    assert refusal_of(f"https://{host}/") == "address_not_allowed"
    assert refusal_of(f"https://{host}:9443/", DEV) == "address_not_allowed"


REFUSED_NAMES = words("""
    localhost local internal home.arpa lan intranet corp home private localdomain onion invalid alt
""")


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_names_that_are_never_public_are_refused_with_all_below_them(name):
    for host in (name, f"a.{name}", f"a.b.{name}", f"A.{name.upper()}"):
        assert refusal_of(f"https://{host}/") == "host_not_allowed"
    assert accepts(f"https://a{name.replace('.', '-')}.example/")
    assert accepts(f"https://{name}.example/")
    assert accepts(f"https://a.x{name}/") or "." not in name


@pytest.mark.parametrize("host", ["intra", "a", "kubernetes", "a-b", "xn--bcher-kva"])
def test_one_label_is_not_a_public_name(host):
    assert refusal_of(f"https://{host}/") == "host_not_allowed"


def test_a_name_has_at_most_253_characters():
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(longest) == 253
    assert accepts(f"https://{longest}/")
    assert refusal_of(f"https://{longest}d/") == "invalid_host"


@pytest.mark.parametrize(
    "port",
    words("""
        1 21 22 25 80 442 444 465 993 1023 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566
        6665 6666 6667 6668 6669 6679 6697 10080
    """),
)
def test_ports_of_other_protocols_are_refused(port):
    assert refusal_of(f"https://example.com:{port}/") == "port_not_allowed"
    assert refusal_of(f"https://8.8.8.8:{port}/") == "port_not_allowed"


@pytest.mark.parametrize("port", words("1024 3000 5000 5062 6001 6664 6670 8080 8443 9443 10079 10081 65535"))
def test_ports_from_1024_up_are_accepted(port):
    assert POLICY.check_url(f"https://example.com:{port}/") == f"https://example.com:{port}/"


@pytest.mark.parametrize(
    "port", ["", *words("0 00 0443 65536 99999 443443 -1 +443 4_43 8443a 0x1bb 443:443 %34")]
)
def test_a_port_is_a_plain_number(port):
    assert refusal_of(f"https://example.com:{port}/") == "invalid_port"
    assert refusal_of(f"https://8.8.8.8:{port}") == "invalid_port"
    assert refusal_of(f"https://[2606:4700::1111]:{port}?") == "invalid_port"


def test_a_url_has_at_most_2048_characters_before_and_after_normalising():
    fits = "https://example.com/".ljust(2048, "a")
    assert POLICY.check_url(fits) == fits
    assert refusal_of(fits + "a") == "url_too_long"
    assert refusal_of("https://example.com?".ljust(2048, "a")) == "url_too_long"
    assert refusal_of("https://[2606::1:2:3:4:5:6]/".ljust(2048, "a")) == "url_too_long"  # "::" becomes ":0:"
    assert refusal_of("x" * 1_000_000) == "url_too_long"


@pytest.mark.parametrize(
    "other", ["https://127.0.0.1/", "https://example.com:9443/", "https://[example.com/"]
)
def test_a_url_on_which_urllib_disagrees_is_refused(monkeypatch, other):
    monkeypatch.setattr(egress_policy, "urlsplit", lambda _url: urlsplit(other))
    assert refusal_of("https://example.com/") == "invalid_host"


def test_every_refusal_has_a_code_and_a_sentence_and_survives_pickling():
    for code, detail in egress_policy._DETAILS.items():
        refused = UrlRefused(code)
        assert isinstance(refused, ValueError)
        assert str(refused) == refused.detail == detail
        assert set(code) <= set(string.ascii_lowercase + "_")
        assert detail.endswith(".")
        assert pickle.loads(pickle.dumps(refused)).detail == detail


def test_a_refusal_repeats_nothing_of_the_url():
    with pytest.raises(UrlRefused) as caught:
        POLICY.check_url("https://canary:hunter2@10.9.8.7/")
    assert "canary" not in repr(caught.value) + str(caught.value)


# --- Properties of whatever is accepted. ---

PRINTABLE = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in "\\#"]
RESTS = st.just("") | st.builds("{}{}".format, st.sampled_from("/?"), st.text(PRINTABLE, max_size=12))
GOOD_LABELS = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?", fullmatch=True)
GOOD_HOSTS = st.one_of(
    st.builds(
        "{}.{}".format,
        st.lists(GOOD_LABELS, min_size=1, max_size=4).map(".".join),
        st.sampled_from(["com", "Example", "x1", "xn--p1ai"]),
    ),
    st.integers(v4(12), v4(99, 255, 255, 255)).map(lambda n: str(ipaddress.IPv4Address(n))),
    st.integers(0x2400 << 112, (0x2600 << 112) - 1).map(
        lambda n: f"[{ipaddress.IPv6Address(n).exploded.upper()}]"
    ),
)
GOOD_PORTS = st.sampled_from(["", ":443", ":1024", ":8443"]) | st.integers(11_000, 65_535).map(":{}".format)
GOOD = st.builds("https://{}{}{}".format, GOOD_HOSTS, GOOD_PORTS, RESTS)

ODD_LABELS = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=8) | st.sampled_from(
    ["localhost", "local", "127", "0", "0x7f", "com", "example", "xn--bcher-kva", "a" * 63, "a" * 64]
)
ODD_HOSTS = st.lists(ODD_LABELS, min_size=1, max_size=5).map(".".join) | st.ip_addresses(v=6).map(
    "[{}]".format
)
ODD_PORTS = st.sampled_from(["", ":", ":0443"]) | st.integers(0, 70_000).map(":{}".format)
ODD = st.builds("https://{}{}{}".format, ODD_HOSTS | GOOD_HOSTS, ODD_PORTS, RESTS)
PIECES = [*"a1.-:/?#@[]%\\ \t\n①", *words("localhost 127.0.0.1 example.com [::1] [2606:4700::1] :8443")]
TRICKY = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: "https://" + "".join(pieces))


@settings(deadline=None)
@given(GOOD)
def test_every_url_of_ordinary_parts_is_accepted(url):
    assert accepts(url)


@settings(max_examples=1000, deadline=None)  # time says more about the machine than about the rule
@given(GOOD | ODD | TRICKY | st.text(max_size=40))
@example("https://example.com?")
@example("https://[2606::1:2:3:4:5:6]")
def test_a_url_is_refused_or_stored_as_a_fixed_point_that_all_parsers_read_alike(url):
    try:
        stored = POLICY.check_url(url)
    except UrlRefused:
        return
    assert POLICY.check_url(stored) == stored

    typed, seen, seen_by_urllib3 = urlsplit(url), urlsplit(stored), urllib3.util.parse_url(stored)
    assert seen.scheme == typed.scheme == "https"
    assert (seen.username, seen.password, seen.fragment) == (None, None, "")
    assert seen.port == (None if typed.port == 443 else typed.port)
    assert seen_by_urllib3.port == seen.port
    assert str(seen_by_urllib3.host).strip("[]") == seen.hostname
    assert (seen.path, seen.query) == (typed.path or "/", typed.query)

    assert len(stored) <= 2048
    assert stored.isascii()
    assert stored.isprintable()
    assert stored.startswith(origin_of(stored) + "/")
    assert origin_of(stored) == f"https://{seen.netloc}"

    host = str(seen.hostname)
    if ":" in host:
        assert ipaddress.IPv6Address(host) == ipaddress.IPv6Address(str(typed.hostname))
        assert may_call_v6(int(ipaddress.IPv6Address(host)))
        return
    assert host == typed.hostname
    if host.rpartition(".")[2].isdigit():
        assert may_call_v4(int(ipaddress.IPv4Address(host)))
    else:
        assert "." in host
        assert not any(f".{host}".endswith(f".{name}") for name in REFUSED_NAMES)


# --- Development origins. ---


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://localhost:9443", "https://localhost:9443"),
        ("https://LOCALHOST:9443", "https://localhost:9443"),
        ("https://localhost:443", "https://localhost"),
        ("https://localhost", "https://localhost"),
        ("https://127.0.0.1:9443", "https://127.0.0.1:9443"),
        ("https://[::1]:9443", "https://[::1]:9443"),
        ("https://[0:0:0:0:0:0:0:1]:22", "https://[::1]:22"),
    ],
)
def test_a_development_origin_is_normalised(text, origin):
    assert parse_dev_origin(text) == origin
    assert parse_dev_origin(origin) == origin
    assert EgressPolicy(dev_origins=frozenset({origin})).check_url(text) == f"{origin}/"
    assert origin_of(f"{origin}/hook/x?y=/z") == origin


@pytest.mark.parametrize(
    "text",
    [
        *words("""
            localhost:9443 http://localhost:9443 HTTPS://localhost:9443 https://localhost:9443/
            https://localhost:1/a https://localhost/ https://localhost? https://localhost?/ https://localhost:9443?a
            https://localhost:9443# https://a@localhost:9443 https://localhost:0 https://localhost:
            https://localhost:65536 https://localhost.:9443 https://a.localhost:9443 https://example.com:9443
            https://10.0.0.1:9443 https://127.0.0.2:9443 https://127.1:9443 https://0.0.0.0:9443
            https://[::ffff:127.0.0.1]:9443 https://[::]:9443 * https://*:9443
        """),
        *["", "https://localhost:9443 "],
    ],
)
def test_anything_else_is_no_development_origin(text):
    with pytest.raises(ValueError, match="is not a development origin") as caught:
        parse_dev_origin(text)
    assert not isinstance(caught.value, UrlRefused)  # it is the operator's error and names the value
    with pytest.raises(ValueError, match="is not a development origin"):
        EgressPolicy(dev_origins=frozenset({text}))


def test_a_policy_takes_normalised_development_origins_only():
    with pytest.raises(ValueError, match="not normalised"):
        EgressPolicy(dev_origins=frozenset({"https://localhost:443"}))


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://localhost:9443/hook?a=b", "https://localhost:9443/hook?a=b"),
        ("https://LocalHost:9443", "https://localhost:9443/"),
        ("https://127.0.0.1:9444/", "https://127.0.0.1:9444/"),
        ("https://[0::1]:22/", "https://[::1]:22/"),
        ("https://localhost:443/", "https://localhost/"),
        ("https://example.com/", "https://example.com/"),
    ],
)
def test_a_development_origin_is_accepted_beside_public_urls(url, stored):
    assert DEV.check_url(url) == stored
    assert DEV.check_url(stored) == stored


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://localhost:9444/", "host_not_allowed"),
        ("https://a.localhost:9443/", "host_not_allowed"),
        ("https://localhost.:9443/", "invalid_host"),
        ("https://127.0.0.1:9443/", "address_not_allowed"),
        ("https://127.0.0.2:9444/", "address_not_allowed"),
        ("https://127.1:9444/", "invalid_host"),
        ("https://[::ffff:127.0.0.1]:9444/", "address_not_allowed"),
        ("https://[::1]:23/", "port_not_allowed"),
        ("https://localhost:9443/#a", "fragment_not_allowed"),
        ("https://u@localhost:9443/", "user_info_not_allowed"),
        ("https://localhost:09443/", "invalid_port"),
        ("https://localhost:9443\\@example.com/", "invalid_url"),
        ("https://localhost:9443/" + "a" * 2048, "url_too_long"),
    ],
)
def test_a_development_origin_is_exact_and_keeps_all_other_rules(url, code):
    assert refusal_of(url, DEV) == code


def test_a_development_origin_reaches_loopback_and_nothing_else():
    policy = EgressPolicy(allow_cidrs=(network("10.0.0.0/8"),), dev_origins=DEV.dev_origins)
    origin = "https://localhost:9443"
    for address in ("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"):
        assert policy.allows_address(address, origin=origin)
        assert not policy.allows_address(address)
        assert not policy.allows_address(address, origin="https://localhost:9999")
        assert not policy.allows_address(address, origin="https://example.com")
        assert not POLICY.allows_address(address, origin=origin)
    for address in words(
        "8.8.8.8 10.0.0.1 126.255.255.255 128.0.0.0 :: ::2 2606:4700::1111 ::1%lo localhost"
    ):
        assert not policy.allows_address(address, origin=origin)
    assert policy.allows_address("10.0.0.1", origin="https://example.com")
