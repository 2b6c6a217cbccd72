"""Which networks lie within which."""

import pytest

from app.api_keys import networks


@pytest.mark.parametrize(
    ("cidrs", "others"),
    [
        ([], []),
        ([], ["203.0.113.0/24"]),
        (["203.0.113.0/24"], ["203.0.113.0/24"]),
        (["203.0.113.0/24"], ["203.0.113.128/25", "203.0.113.7/32"]),
        (["198.51.100.0/24", "2001:db8::/32"], ["2001:db8:1::/48", "198.51.100.1/32"]),
        (["0.0.0.0/0"], ["255.255.255.255/32", "0.0.0.0/0"]),
        (["::/0"], ["::/0", "ffff::/16"]),
    ],
)
def test_whoever_is_bound_to_these_is_bound_to_those(cidrs, others):
    assert networks.cover(cidrs, others)


@pytest.mark.parametrize(
    ("cidrs", "others"),
    [
        (["203.0.113.0/24"], []),
        (["0.0.0.0/0"], []),
        (["203.0.113.0/24"], ["203.0.112.0/23"]),
        (["203.0.113.0/24"], ["203.0.114.0/24"]),
        (["203.0.113.0/24"], ["203.0.113.0/25", "203.0.114.1/32"]),
        (["203.0.113.0/24"], ["0.0.0.0/0"]),
        (["0.0.0.0/0"], ["::/0"]),
        (["::/0"], ["203.0.113.1/32"]),
        # Together they would, but no rule about them should depend on how they are cut.
        (["203.0.113.0/25", "203.0.113.128/25"], ["203.0.113.0/24"]),
    ],
)
def test_whoever_is_bound_to_these_is_not_bound_to_those(cidrs, others):
    assert not networks.cover(cidrs, others)
