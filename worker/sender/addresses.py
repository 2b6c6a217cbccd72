"""The last word on where a connection goes: the policy, and never this machine itself."""

import ipaddress
import socket
from typing import Any

from app.core.egress_policy import EgressPolicy


class AddressJudge:
    """Applies the policy to socket addresses."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    def may_connect(self, family: int, address: tuple[Any, ...], origin: str) -> bool:
        """Whether a connection for `origin` may go to this very socket address."""
        ip = address[0]
        if not self._policy.allows_address(ip, origin=origin):
            return False
        if origin in self._policy.dev_origins or self._is_allowed_by_operator(ip):
            return True
        return not _is_own_address(family, address)

    def _is_allowed_by_operator(self, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._policy.allow_cidrs)


def _is_own_address(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an interface of this machine has the address: only then the kernel would use it as source too.

    Connecting a UDP socket sends nothing.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address[0])
