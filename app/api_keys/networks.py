"""Where a key may be used from: networks in CIDR form, as `app/api_keys/schemas.py` keeps them."""

import ipaddress
from collections.abc import Sequence


def contain(cidrs: Sequence[str], address: str) -> bool:
    """Tell whether an address lies in one of the networks; an IPv4-mapped one is judged as IPv4."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in ipaddress.ip_network(cidr) for cidr in cidrs)


def cover(cidrs: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether whoever is bound to `others` is bound to `cidrs` too. No networks at all means every address."""
    if not cidrs:
        return True
    return bool(others) and all(any(_within(other, cidr) for cidr in cidrs) for other in others)


def _within(inner: str, outer: str) -> bool:
    # Both ends of a network lie in the other only when all of it does, and of either version.
    network = ipaddress.ip_network(inner)
    return all(end in ipaddress.ip_network(outer) for end in (network[0], network[-1]))
