"""The limit of an API key at the edge, told in the fields of draft-ietf-httpapi-ratelimit-headers-10."""

from flask import Response, g

from app.core.errors import RateLimited
from app.core.rate_limit import WINDOW_SECONDS
from app.rest import context
from app.rest.context import Credential


def spend(credential: Credential) -> None:
    """Count the current request; raises `RateLimited` when its key has made too many in this second."""
    g.request_count = context.resources().request_counter.count(credential.key_id)
    if g.request_count is not None and g.request_count > credential.rate_limit:
        detail = f"This API key may make {credential.rate_limit} requests per second."
        raise RateLimited(detail, retry_after_seconds=WINDOW_SECONDS)


def describe(response: Response, credential: Credential) -> None:
    """Tell the key's limit, and what is left of it unless nothing was counted: Redis was away, or it was a 403."""
    limit, count = credential.rate_limit, g.get("request_count")
    response.headers["RateLimit-Policy"] = f'"default";q={limit};w={WINDOW_SECONDS}'
    if count is not None:
        response.headers["RateLimit"] = f'"default";r={max(limit - count, 0)};t={WINDOW_SECONDS}'
