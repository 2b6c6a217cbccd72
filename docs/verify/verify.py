"""Verify the X-BotBat-Signature of a webhook: Python 3.9 or later, standard library only.

Paste the marked part. Run as a program, the file reads one JSON object from standard input:
{"secret", "body", "header", "tolerance", "now"}, and prints `valid` or `invalid: <reason>`.
"""

# --8<-- start
import hashlib
import hmac
import re
import time


def verify(secret, body, header, tolerance=300, now=None):
    """Raise ValueError unless `header` (X-BotBat-Signature) signs `body`, the raw bytes as received.

    `tolerance` is how many seconds the timestamp may be off, either way; `now` is Unix time in seconds.
    """
    if not secret:
        raise ValueError("the secret is empty")  # anyone can sign with an empty key
    pairs = [item.partition("=") for item in (header or "").split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    signatures = [value for name, _, value in pairs if name == "v1"]  # two while a secret is rotated
    if len(times) != 1 or not re.fullmatch("[0-9]{1,12}", times[0]):
        raise ValueError("malformed header")
    if abs(int(time.time() if now is None else now) - int(times[0])) > tolerance:
        raise ValueError("timestamp outside the tolerance")
    signed = times[0].encode() + b"." + body
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    if not any(hmac.compare_digest(expected, signature.encode()) for signature in signatures):
        raise ValueError("no signature matches")
# --8<-- end


if __name__ == "__main__":
    import json
    import sys

    given = json.loads(sys.stdin.buffer.read())
    tolerance = given.get("tolerance")
    try:
        verify(
            given["secret"],
            given["body"].encode(),
            given["header"],
            300 if tolerance is None else tolerance,
            given.get("now"),
        )
    except ValueError as error:
        print(f"invalid: {error}")
        sys.exit(1)
    print("valid")
