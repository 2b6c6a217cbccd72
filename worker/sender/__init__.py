"""Requests to addresses that customers gave: the only code that opens connections to them."""

from worker.sender.exchange import Outcome, Outgoing
from worker.sender.loop import Sender, send_one

__all__ = ["Outcome", "Outgoing", "Sender", "send_one"]
