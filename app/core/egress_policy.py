"""Which URLs and addresses that customers give may be called.

Pure rules without DNS or sockets. They are asked twice: about the text of a URL whenever it is stored and
before each send, and about every address that a connection would really go to. The text alone proves nothing:
a public name may resolve to 127.0.0.1, and resolvers read `0x7f.1` or full-width digits as 127.0.0.1 as well.

The tables are our own because `ipaddress.is_global` of CPython 3.11 calls multicast, NAT64 and 6to4 global.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 2048
HTTPS_PORT = 443
FIRST_UNPRIVILEGED_PORT = 1024

# The ports from 1024 up that browsers refuse too, because what listens there is no web server and could take
# bytes of a request for commands: https://fetch.spec.whatwg.org/#port-blocking
BAD_PORTS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566}
    | {6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080}
)

# IANA IPv4 Special-Purpose Address Registry, with the multicast and the reserved block of the IPv4 Address
# Space registry. Entries that IANA calls globally reachable (AS112, AMT) are here too: they are anycast
# infrastructure that any network may answer for, and no customer's receiver.
_IPV4_DENIED = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # "this network", RFC 791; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "127.0.0.0/8",  # loopback, RFC 1122
        "169.254.0.0/16",  # link-local, RFC 3927; the metadata service of most clouds
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.31.196.0/24",  # AS112 v4, RFC 7535
        "192.52.193.0/24",  # AMT, RFC 7450
        "192.88.99.0/24",  # 6to4 relay anycast, deprecated by RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "192.175.48.0/24",  # direct delegation AS112, RFC 7534
        "198.18.0.0/15",  # benchmarking, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 1112
        "240.0.0.0/4",  # reserved, RFC 1112, and limited broadcast, RFC 919
        "168.63.129.16/32",  # Azure's platform services: public space, answered by the machine's host
    )
)

# IPv6 turns the question round: IANA allocates unicast from 2000::/3 only (IPv6 Global Unicast Address Space
# registry), so loopback, IPv4-compatible, NAT64, unique local, link-local, multicast and every block that has
# no meaning yet are refused without being named.
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_IPV6_DENIED = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # IETF protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056: carries any IPv4 address, private ones included
        "2620:4f:8000::/48",  # direct delegation AS112, RFC 7534
        "3fff::/20",  # documentation, RFC 9637
    )
)

_LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

# Names that never belong to a public host: RFC 6761 (localhost, invalid), RFC 6762 section 3 and appendix G
# (local, and what private networks use in its place), RFC 7686 (onion), RFC 8375 (home.arpa), RFC 9476 (alt),
# localdomain by custom, and internal, which ICANN has set aside; Google's metadata server has a name there.
_REFUSED_SUFFIXES = (
    *("localhost", "local", "internal", "home.arpa", "lan", "intranet", "corp", "home", "private"),
    *("localdomain", "onion", "invalid", "alt"),
)

_PRINTABLE_WITHOUT_BACKSLASH = re.compile(r"[!-\[\]-~]*")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(?P<port>.*))?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # letters, digits, hyphen: RFC 1123 section 2.1
_MAX_NAME_LENGTH = 253  # RFC 1035 section 2.3.4: 255 octets on the wire, without length octet and root label
# A last label that makes some parser read the host as an IPv4 address in decimal, octal or hex; somewhat more
# than "ends in a number" of the WHATWG URL Standard.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x.*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_MAX_PORT = 65535

_DETAILS = {
    "url_too_long": f"The URL may have at most {MAX_URL_LENGTH} characters.",
    "invalid_url": "The URL may hold printable ASCII characters only, without spaces and backslashes. "
    "Percent-encode others, and give international names in their xn-- form.",
    "https_required": "The URL must start with https:// in lower-case letters.",
    "fragment_not_allowed": "Remove the # and what follows it: a fragment is never sent to a server.",
    "user_info_not_allowed": "Remove the user name and password before the @; send credentials in a header.",
    "invalid_host": "Give the host as a full DNS name such as hooks.example.com, of letters, digits and "
    "hyphens and without a dot at the end, or as a plain IP address.",
    "invalid_port": "Give the port as a plain number from 1 to 65535, or leave out the colon.",
    "host_not_allowed": "This name is not one of the public internet. Use a name such as hooks.example.com.",
    "port_not_allowed": "Use port 443, or one from 1024 up that belongs to no other protocol.",
    "address_not_allowed": "This address is not on the public internet. Use the receiver's public address.",
}


class UrlRefused(ValueError):
    """A URL that may not be called. `code` is stable; `detail` tells the customer what to do."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.detail = _DETAILS[code]

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The built-in rule with what the operator adds to it.

    `deny_cidrs` wins over everything; `allow_cidrs` wins over the built-in table, but makes no refused name
    or port acceptable. `dev_origins` are as `parse_dev_origin` gives them; anything else is a ValueError, and
    so is a CIDR in IPv4-mapped form: it would match nothing, because mapped addresses are judged as IPv4.
    """

    allow_cidrs: tuple[Network, ...] = ()
    deny_cidrs: tuple[Network, ...] = ()
    dev_origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for cidr in (*self.allow_cidrs, *self.deny_cidrs):
            if isinstance(cidr, ipaddress.IPv6Network) and cidr.subnet_of(_IPV4_MAPPED):
                raise ValueError(f"Write {cidr} in its IPv4 form: IPv4-mapped addresses are judged as IPv4.")
        for origin in self.dev_origins:
            if parse_dev_origin(origin) != origin:
                raise ValueError(f"{origin!r} is not normalised; pass it through parse_dev_origin.")

    def check_url(self, url: str) -> str:
        """Give the URL in the form to store and to call, or raise UrlRefused.

        Normalising lower-cases the host, compresses an IPv6 literal, drops `:443` and sets an empty path to
        `/`; path and query stay byte for byte. A result is accepted again unchanged. That a name is accepted
        says nothing about where it resolves to.
        """
        target = _parse(url)
        if target.origin not in self.dev_origins:
            if target.address is None:
                _require_public_name(target.host)
            _require_web_port(target.port)
        if target.address is not None and not self.allows_address(target.address, origin=target.origin):
            raise UrlRefused("address_not_allowed")

        normalised = target.origin + target.rest
        if len(normalised) > MAX_URL_LENGTH:  # a "/" or a zero written out can make it longer than the input
            raise UrlRefused("url_too_long")
        if _urllib_sees(normalised) != (target.host.strip("[]"), target.port):
            # Two parsers that disagree on the host are how a checked URL becomes another connection.
            raise UrlRefused("invalid_host")
        return normalised

    def allows_address(self, address: str, *, origin: str = "") -> bool:
        """Whether a connection may go to this textual address, as getaddrinfo gives it.

        `origin` is `origin_of` the URL being called: a development origin may reach loopback, nothing else.
        Text that is no address and an address with a scope id are refused.
        """
        if "%" in address:  # a scope id means that the address has a meaning on one link only: RFC 4007
            return False
        try:
            ip: Address = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # the kernel sends IPv4 packets for it: RFC 4291 section 2.5.5.2

        if _within(ip, self.deny_cidrs):
            return False
        if origin in self.dev_origins:
            return _within(ip, _LOOPBACK)
        return _within(ip, self.allow_cidrs) or _is_public_unicast(ip)


def origin_of(url: str) -> str:
    """Give `https://host` or `https://host:port` of a URL that `check_url` gave."""
    return "/".join(url.split("/", 3)[:3])


def parse_dev_origin(text: str) -> str:
    """Give the normalised origin of `https://localhost:9443`, `https://127.0.0.1:9443` or `https://[::1]:9443`.

    Raises ValueError for any other host, and for anything after the port.
    """
    refusal = f"{text!r} is not a development origin"
    try:
        target = _parse(text)
    except UrlRefused as refused:
        raise ValueError(f"{refusal}: {refused.detail}") from None
    if target.host not in {"localhost", "127.0.0.1", "[::1]"}:
        raise ValueError(f"{refusal}: the host must be localhost, 127.0.0.1 or [::1].")
    if target.rest != "/" or text.endswith("/"):
        raise ValueError(f"{refusal}: nothing may follow the port, not even a slash.")
    return target.origin


@dataclass(frozen=True, slots=True)
class _Target:
    host: str  # as it stands in a URL: lower case, an IPv6 literal compressed and in brackets
    address: str | None  # the host where it is an IP literal, without brackets
    port: int
    rest: str  # path and query, at least "/"

    @property
    def origin(self) -> str:
        return f"https://{self.host}" + ("" if self.port == HTTPS_PORT else f":{self.port}")


def _parse(url: str) -> _Target:
    """Take the URL apart, refusing every shape that two parsers could read differently."""
    if len(url) > MAX_URL_LENGTH:
        raise UrlRefused("url_too_long")
    # urllib drops tabs and newlines, browsers read a backslash as a slash, IDNA folds full-width digits.
    if not _PRINTABLE_WITHOUT_BACKSLASH.fullmatch(url):
        raise UrlRefused("invalid_url")
    if not url.startswith("https://"):
        raise UrlRefused("https_required")
    if "#" in url:
        raise UrlRefused("fragment_not_allowed")

    after_scheme = url.removeprefix("https://")
    authority = re.split("[/?]", after_scheme, maxsplit=1)[0]
    rest = after_scheme.removeprefix(authority)
    if "@" in authority:
        raise UrlRefused("user_info_not_allowed")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise UrlRefused("invalid_host")
    host, address = _parse_host(parts["host"].lower())
    return _Target(host, address, _parse_port(parts["port"]), rest if rest.startswith("/") else f"/{rest}")


def _parse_host(host: str) -> tuple[str, str | None]:
    labels = host.split(".")
    try:
        if host.startswith("["):
            address = str(ipaddress.IPv6Address(host.strip("[]")))
            return f"[{address}]", address
        if _NUMERIC_LABEL.fullmatch(labels[-1]):
            # Takes four decimal parts without leading zeros only: `127.1` and `0177.0.0.1` end here.
            return host, str(ipaddress.IPv4Address(host))
    except ValueError:
        raise UrlRefused("invalid_host") from None
    if len(host) > _MAX_NAME_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        raise UrlRefused("invalid_host")
    return host, None


def _parse_port(text: str | None) -> int:
    if text is None:
        return HTTPS_PORT
    if not _PORT.fullmatch(text) or int(text) > _MAX_PORT:
        raise UrlRefused("invalid_port")
    return int(text)


def _require_public_name(name: str) -> None:
    if "." not in name or f".{name}".endswith(tuple(f".{suffix}" for suffix in _REFUSED_SUFFIXES)):
        raise UrlRefused("host_not_allowed")


def _require_web_port(port: int) -> None:
    if port != HTTPS_PORT and (port < FIRST_UNPRIVILEGED_PORT or port in BAD_PORTS):
        raise UrlRefused("port_not_allowed")


def _urllib_sees(url: str) -> tuple[str | None, int] | None:
    try:
        seen = urlsplit(url)
        port = seen.port or HTTPS_PORT
    except ValueError:
        return None
    return seen.hostname, port


def _is_public_unicast(ip: Address) -> bool:
    if isinstance(ip, ipaddress.IPv4Address):
        return not _within(ip, _IPV4_DENIED)
    return ip in _IPV6_UNICAST and not _within(ip, _IPV6_DENIED)


def _within(ip: Address, networks: tuple[Network, ...]) -> bool:
    return any(ip in network for network in networks)
