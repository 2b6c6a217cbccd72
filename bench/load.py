"""A load that many connections make together: the same request, again and again."""

import http.client
import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What is sent to a port of this machine, and the status that has to come back."""

    port: int
    method: str
    path: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


def repeat(request: Request, seconds: float, connections: int) -> int:
    """Send a request for some seconds over so many connections at once; gives how often it was answered."""
    done = [0] * connections
    deadline = time.monotonic() + seconds

    def send(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", request.port)
        while time.monotonic() < deadline:
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == request.status, answer.status
            done[index] += 1
        connection.close()

    threads = [threading.Thread(target=send, args=(index,)) for index in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)
