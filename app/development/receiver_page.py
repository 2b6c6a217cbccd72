"""The page of the built-in receiver: the last requests, without a script."""

from collections.abc import Sequence
from html import escape

from app.development.inbox import Received

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_SHOWN = 50
_SHOWN_BODY_CHARACTERS = 4000

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="3">
<meta name="viewport" content="width=device-width">
<title>BotBat receiver</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
article {{ border: 1px solid #8886; border-radius: 8px; padding: .6rem 1rem; margin: .8rem 0 }}
p {{ margin: .2rem 0 }}
pre {{ margin: .4rem 0; max-height: 16rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere }}
small {{ opacity: .8 }}
.good {{ color: light-dark(#116329, #4ac26b) }}
.bad {{ color: light-dark(#a40e26, #ff7b72) }}
</style>
</head>
<body>
<h1>Received webhooks</h1>
<p>POST to <code>/inbox</code>. To see retries, give an endpoint another path here: <code>/fail</code>,
<code>/fail/503</code>, <code>/hang</code>, <code>/hang/5</code>, <code>/slow/2</code>,
<code>/redirect</code>.
As JSON: <a href="/requests">/requests</a>.</p>
{requests}
</body>
</html>
"""

_REQUEST = """\
<article>
<p><strong>{event}</strong> to <code>{path}</code>, answered {status},
<span class="{mood}">{verdict}</span></p>
<p><small>{received_at} {delivery}</small></p>
<pre>{body}</pre>
</article>
"""


def render(requests: Sequence[Received]) -> str:
    """Give the page. Whatever came in is escaped."""
    shown = "".join(map(_request, requests[:_SHOWN]))
    return _PAGE.format(requests=shown or "<p>Nothing yet.</p>")


def _request(received: Received) -> str:
    verdict = (
        f"verified by {received.verified_by}" if received.verified else f"not verified: {received.reason}"
    )
    shown = {
        "event": received.event or "POST",
        "path": received.path,
        "status": "nothing" if received.status is None else str(received.status),
        "mood": "good" if received.verified else "bad",
        "verdict": verdict,
        "received_at": received.received_at,
        "delivery": received.delivery or "",
        "body": received.body[:_SHOWN_BODY_CHARACTERS],
    }
    return _REQUEST.format(**{name: escape(text) for name, text in shown.items()})
