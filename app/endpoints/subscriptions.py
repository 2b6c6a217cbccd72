"""Which event types an endpoint subscribes to: names, `*`, or a group such as `message.*`."""

from collections.abc import Sequence

EVERYTHING = "*"
_GROUP = ".*"


def is_pattern(subscription: str) -> bool:
    """Tell whether this stands for several types."""
    return subscription == EVERYTHING or subscription.endswith(_GROUP)


def wants(subscriptions: Sequence[str], event_type: str) -> bool:
    """Tell whether an event of this type is subscribed to."""
    return any(
        subscription in (event_type, EVERYTHING)
        or (subscription.endswith(_GROUP) and event_type.startswith(subscription[:-1]))
        for subscription in subscriptions
    )
