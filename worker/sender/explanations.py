"""Why a request failed, in the customer's words."""

from dataclasses import dataclass
from typing import Final

import pycurl

from worker.sender.exchange import MAX_ANSWER_BYTES

# Error code and detail, as customers see them.
_BLOCKED: Final = (
    "blocked_address",
    (
        "The host name leads only to addresses that may not be called (private, reserved, or our own). "
        "Use a name with a public address."
    ),
)
PARTLY_BLOCKED: Final = (
    "blocked_address",
    (
        "The host name leads to an address that may not be called (private, reserved, or our own), beside "
        "others. Let it lead to public addresses only."
    ),
)
_UNREACHABLE: Final = (
    "connect_failed",
    "No connection to the endpoint could be made. Check that it is up and that its firewall lets us in.",
)
_CUT_HANDSHAKE: Final = (
    "connect_failed",
    (
        "The endpoint closed the connection during the TLS handshake. Check its TLS settings, and that its "
        "firewall lets us in."
    ),
)
_BROKEN: Final = (
    "connect_failed",
    (
        "The connection broke before the endpoint had answered completely. Check in its log whether it was "
        "restarted, and what a proxy or firewall in front of it does."
    ),
)
_UNEXPLAINED: Final = (
    "connect_failed",
    "The request could not be made. Try again; if that does not help, contact support.",
)
_BAD_HANDSHAKE: Final = (
    "tls_failed",
    "The TLS handshake failed. The endpoint must speak TLS 1.2 or newer on this port.",
)
NOT_HTTP: Final = (
    "invalid_response",
    "The endpoint's answer is not valid HTTP/1.1. Check that the URL's port is that of a web server.",
)
_NO_ANSWER: Final = (
    "invalid_response",
    "The endpoint closed the connection without an answer. Check in its log whether it failed.",
)
PARTIAL: Final = (
    "invalid_response",
    (
        "The endpoint closed the connection before its answer was complete. Check in its log whether it "
        "failed, and that the Content-Length of its answers is right."
    ),
)
TOO_LARGE: Final = (
    "response_too_large",
    f"The endpoint's answer is larger than {MAX_ANSWER_BYTES // 1024} KiB. Answer with less.",
)
_EXPLAINED: Final = {
    pycurl.E_COULDNT_RESOLVE_HOST: (
        "dns_failed",
        "The host name could not be resolved. Check the URL and the DNS records of the name.",
    ),
    pycurl.E_SSL_CIPHER: _BAD_HANDSHAKE,
    pycurl.E_SSL_CERTPROBLEM: _BAD_HANDSHAKE,
    pycurl.E_SEND_ERROR: _BROKEN,
    pycurl.E_ABORTED_BY_CALLBACK: _BROKEN,  # by _on_ready
    pycurl.E_GOT_NOTHING: _NO_ANSWER,
    pycurl.E_PARTIAL_FILE: PARTIAL,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: NOT_HTTP,  # CURLE_WEIRD_SERVER_REPLY by its older name
    pycurl.E_UNSUPPORTED_PROTOCOL: NOT_HTTP,  # HTTP/0.9, and status codes that are none
    pycurl.E_BAD_CONTENT_ENCODING: NOT_HTTP,  # of Transfer-Encoding too
}

# X509_V_ERR_*, https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_OUT_OF_DATE: Final = {9, 10}
_UNKNOWN_AUTHORITY: Final = {2, 18, 19, 20, 21}

_TLS_CODES: Final = {
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_SSL_CIPHER,
    pycurl.E_SSL_CERTPROBLEM,
}
_PROXY_AUTHENTICATION_REQUIRED: Final = 407

# What to do after a status; https://www.rfc-editor.org/rfc/rfc9110#section-15
_ADVICE: Final = {
    401: "Let it check our signature, or set the header that it asks for.",
    403: "Let it check our signature, and see that no firewall in front of it turns us away.",
    404: "Check the path of the URL.",
    405: "Check the path of the URL: it has to accept POST.",
    410: "Check the path of the URL, or delete the endpoint if nobody needs it.",
    413: "Let it accept bodies of 256 KiB, or choose events that are smaller.",
    429: "Set a rate limit in the endpoint's policy.",
}
_REDIRECTED: Final = "Redirects are never followed: set the URL to the final address."
_REFUSED: Final = "It refused the request: its answer or its log should say why."
_FAILED: Final = "It failed at its own work: look into its log."


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How libcurl ended a transfer, and how far that had come.

    libcurl's message is searched but never shown: it may hold an address.
    """

    curl_code: int
    message: str
    easy: pycurl.Curl
    timeout_ms: int
    permitted: int  # addresses that libcurl might connect to
    refused: int
    unjudged: bool  # judging an address raised
    sent: bool  # the request was handed to a connection
    answered: bool  # at least with a line

    def explain(self) -> tuple[str, str]:  # noqa: PLR0911 - a table with questions
        """Give error code and detail."""
        curl_code, message = self.curl_code, self.message
        if curl_code == pycurl.E_OPERATION_TIMEDOUT:
            return "timeout", self._explain_timeout()
        if curl_code == pycurl.E_COULDNT_CONNECT:
            return self._explain_connect()
        if curl_code == pycurl.E_PEER_FAILED_VERIFICATION:
            return "tls_failed", self._explain_certificate()
        if curl_code == pycurl.E_SSL_CONNECT_ERROR:
            cut = any(sign in message for sign in ("SYSCALL", "reset by peer", "unexpected eof"))
            return _CUT_HANDSHAKE if cut else _BAD_HANDSHAKE
        if curl_code == pycurl.E_RECV_ERROR:
            return self._explain_receive_error()
        if curl_code == pycurl.E_GOT_NOTHING and self.answered:  # an interim answer only
            return PARTIAL
        return _EXPLAINED.get(curl_code, _UNEXPLAINED)

    def _explain_timeout(self) -> str:
        within = f"within {self.timeout_ms / 1000:g} s"
        if self.message.startswith("Resolving"):
            return f"The host name could not be resolved {within}. Check the DNS servers of the name."
        if not self.message.startswith("Connection"):
            progress = (
                "The endpoint's answer was not complete" if self.answered else "The endpoint did not answer"
            )
            return f"{progress} {within}. Answer first, then do the work."
        if self.easy.getinfo(pycurl.CONNECT_TIME):
            return (
                f"The TLS handshake with the endpoint was not complete {within}. Check that it speaks TLS on "
                "this port and is not overloaded."
            )
        return f"No connection to the endpoint could be made {within}. Check that its firewall lets us in."

    def _explain_connect(self) -> tuple[str, str]:
        if self.unjudged:
            return _UNEXPLAINED
        if self.sent:
            return _BROKEN
        if self.refused and not self.permitted:
            return _BLOCKED
        code, detail = _UNREACHABLE
        if self.refused:
            detail += " Some addresses of the host name were left out: they may not be called."
        return code, detail

    def _explain_certificate(self) -> str:
        if "subject name" in self.message:
            return "The endpoint's certificate is for another host name. It must have the name in the URL."
        verdict = self.easy.getinfo(pycurl.SSL_VERIFYRESULT)
        if verdict in _OUT_OF_DATE:
            return "The endpoint's certificate has expired, or is not valid yet. Renew it."
        if verdict in _UNKNOWN_AUTHORITY:
            return (
                "The endpoint's certificate is not from an authority that we know. Use one from a public "
                "authority, and let the server send the whole chain."
            )
        return "The endpoint's certificate could not be verified. Check it and its chain."

    def _explain_receive_error(self) -> tuple[str, str]:
        if "unexpected eof" in self.message:
            # TCP was closed in good order, only without TLS's word for it.
            return PARTIAL if self.answered else _NO_ANSWER
        if "Recv failure" in self.message or "SSL_" in self.message:
            return _BROKEN
        return NOT_HTTP  # bad chunks come with this code too


def explain_status(status: int) -> str:
    """Give the detail of an answer from 300 to 599."""
    of_class = _REDIRECTED if status <= 399 else _REFUSED if status <= 499 else _FAILED  # noqa: PLR2004
    return f"The endpoint answered {status}. {_ADVICE.get(status, of_class)}"


def explain_proxy(curl_code: int, answer: int, timeout_ms: int) -> tuple[str, str]:
    """Give error code and detail of a request for which the egress proxy opened no tunnel.

    `answer` is the status that the proxy gave to CONNECT, 0 for none.
    """
    ours = "The fault is ours and not the endpoint's: if it lasts, contact support."
    unclear = "Check that the endpoint can be reached from the internet; if it can, contact support."
    if answer == _PROXY_AUTHENTICATION_REQUIRED:
        detail = f"Our egress proxy did not accept our credentials. {ours}"
    elif answer:
        detail = f"Our egress proxy answered {answer} and opened no connection to the endpoint. {unclear}"
    elif curl_code == pycurl.E_OPERATION_TIMEDOUT:
        within = f"within {timeout_ms / 1000:g} s"
        detail = f"Our egress proxy opened no connection to the endpoint {within}. {unclear}"
    elif curl_code in {pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_PROXY}:
        detail = f"Our egress proxy could not be reached. {ours}"
    elif curl_code in _TLS_CODES:
        detail = f"The TLS handshake with our egress proxy failed. {ours}"
    else:
        detail = f"Our egress proxy gave no valid answer. {ours}"
    return "proxy_failed", detail
