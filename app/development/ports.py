"""Ports of this machine: which are free, and a plain sentence about those that are not."""

import errno
import socket

from app.processes import CannotStart


def refusal(host: str, port: int) -> str | None:
    """Give why nothing can listen there, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose connections are only winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return None


def free(host: str = "127.0.0.1") -> int:
    """Give a port that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def this_or_free(port: int) -> int:
    """Give `port` of the loopback if it can be had, else any other."""
    wanted = port <= 65535 and refusal("127.0.0.1", port) is None  # noqa: PLR2004 - the last port
    return port if wanted else free()


def require(host: str, port: int, advice: str) -> None:
    """Raise `CannotStart` with one sentence when the port cannot be had."""
    if reason := refusal(host, port):
        raise CannotStart(f"Port {port} {reason}. {advice}")
