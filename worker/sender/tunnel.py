"""A request through the egress proxy."""

from typing import Any, Final

import pycurl
import structlog

from app.core.egress_policy import origin_of
from worker.sender.exchange import Outcome, Outgoing
from worker.sender.explanations import PARTLY_BLOCKED, explain_proxy
from worker.sender.transfer import Transfer

# As long as libcurl remembers a name for direct connections.
_LOOK_HOLDS_SECONDS: Final = 60
_MAX_REMEMBERED: Final = 4096

_log = structlog.get_logger(__name__)


class TunneledTransfer(Transfer):
    """Looks first where the host name leads, then asks the proxy for a tunnel and sends through that.

    The look is a transfer without the proxy that gets no socket: libcurl resolves the name and goes through all
    addresses, which are judged. One that is refused is enough to refuse the request: the proxy is given the name,
    resolves it again, and cannot be told to leave an address out.
    """

    __slots__ = ("_answered", "_looked", "_looks", "_proxy")

    def __init__(self, *arguments: Any, proxy: str, looks: dict[str, float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._proxy = proxy
        self._looks = looks  # origin: until when (monotonic) a look that permitted it holds
        self._looked = False
        setopt = self.easy.setopt
        ca_file = arguments[0]
        setopt(pycurl.NOPROXY, "")  # beats no_proxy of the environment
        setopt(pycurl.HTTPPROXYTUNNEL, 1)
        setopt(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)  # the customer's headers are not for the proxy
        setopt(pycurl.PROXY_SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        setopt(pycurl.PROXY_SSL_VERIFYPEER, 1)
        setopt(pycurl.PROXY_SSL_VERIFYHOST, 2)
        setopt(pycurl.PROXY_CAINFO, ca_file)
        self.easy.unsetopt(pycurl.PROXY_CAPATH)

    def restart(self, outgoing: Outgoing) -> None:
        super().restart(outgoing)
        self._answered = False  # the proxy, to the end of its headers
        self._looked = self._looks.get(origin_of(self.url), 0.0) > self._started
        self.easy.setopt(pycurl.PROXY, self._proxy if self._looked else "")

    def goes_on(self, now: float, curl_code: int) -> bool:
        if self._looked:
            return super().goes_on(now, curl_code)
        if curl_code != pycurl.E_COULDNT_CONNECT or self._refused or not self._permitted:
            return False
        if len(self._looks) >= _MAX_REMEMBERED:
            self._looks.clear()
        self._looks[origin_of(self.url)] = now + _LOOK_HOLDS_SECONDS
        assert self.outgoing is not None
        left_ms = self.outgoing.timeout_ms - int((now - self._started) * 1000)
        self.easy.setopt(pycurl.TIMEOUT_MS, max(left_ms, 1))
        self.timeout_ms = -1  # to be set anew for the next request
        self.easy.setopt(pycurl.PROXY, self._proxy)
        self._looked = True
        return True

    def failed(self, now: float, curl_code: int, message: str) -> Outcome:
        answer = self.easy.getinfo(pycurl.HTTP_CONNECTCODE) if self._answered else 0
        if not self._looked or self._sent or 200 <= answer <= 299:  # noqa: PLR2004 - RFC 9110, 9.3.6
            return super().failed(now, curl_code, message)
        assert self.outgoing is not None
        _log.warning("egress.proxy_failed", origin=origin_of(self.url), curl_code=curl_code, status=answer)
        return self._outcome(now, [], None, *explain_proxy(curl_code, answer, self.outgoing.timeout_ms))

    def _explain(self, curl_code: int, message: str) -> tuple[str, str]:
        if not self._looked and self._refused and self._permitted and not self._unjudged:
            return PARTLY_BLOCKED
        return super()._explain(curl_code, message)

    def _permits(self, address: Any) -> bool:
        return self._looked or super()._permits(address)

    def _socket_for(self, address: Any) -> Any:
        return super()._socket_for(address) if self._looked else pycurl.SOCKET_BAD

    def _on_header(self, line: bytes) -> int | None:
        if self._sent:
            return super()._on_header(line)
        self._answered = line in {b"\r\n", b"\n"}
        return None
