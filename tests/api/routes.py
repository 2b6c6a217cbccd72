"""Every route, with what a key needs for it: a new one is missed here until somebody has thought about that."""

import re

PUBLIC = {
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
    ("GET", "/problems/<code>"),
    ("GET", "/readyz"),
    ("GET", "/static/<path:filename>"),
}
SCOPES = {
    ("GET", "/v1/api-keys"): "api_keys:read",
    ("POST", "/v1/api-keys"): "api_keys:write",
    ("GET", "/v1/api-keys/<key_id>"): "api_keys:read",
    ("PATCH", "/v1/api-keys/<key_id>"): "api_keys:write",
    ("POST", "/v1/api-keys/<key_id>/rotate"): "api_keys:write",
    ("POST", "/v1/api-keys/<key_id>/revoke"): "api_keys:write",
    ("GET", "/v1/events"): "events:read",
    ("POST", "/v1/events"): "events:write",
    ("POST", "/v1/events/batch"): "events:write",
    ("GET", "/v1/events/<event_id>"): "events:read",
    ("DELETE", "/v1/events/<event_id>/payload"): "events:write",
    ("GET", "/v1/event-types"): "event_types:read",
    ("GET", "/v1/event-types/<name>"): "event_types:read",
    ("PUT", "/v1/event-types/<name>"): "event_types:write",
    ("DELETE", "/v1/event-types/<name>"): "event_types:write",
    ("GET", "/v1/endpoints"): "endpoints:read",
    ("POST", "/v1/endpoints"): "endpoints:write",
    ("POST", "/v1/endpoints/match"): "endpoints:read",
    ("POST", "/v1/endpoints/preview"): "endpoints:read",
    ("GET", "/v1/endpoints/<endpoint_id>"): "endpoints:read",
    ("PATCH", "/v1/endpoints/<endpoint_id>"): "endpoints:write",
    ("DELETE", "/v1/endpoints/<endpoint_id>"): "endpoints:write",
    ("GET", "/v1/endpoints/<endpoint_id>/secret"): "endpoints:write",
    ("POST", "/v1/endpoints/<endpoint_id>/rotate-secret"): "endpoints:write",
    ("POST", "/v1/endpoints/<endpoint_id>/pause"): "endpoints:write",
    ("POST", "/v1/endpoints/<endpoint_id>/resume"): "endpoints:write",
    ("POST", "/v1/endpoints/<endpoint_id>/test"): "endpoints:write",
    ("GET", "/v1/endpoints/<endpoint_id>/attempts"): "deliveries:read",
    ("GET", "/v1/endpoints/<endpoint_id>/attempts.ndjson"): "deliveries:read",
    ("GET", "/v1/endpoints/<endpoint_id>/stats"): "deliveries:read",
    ("GET", "/v1/deliveries"): "deliveries:read",
    ("GET", "/v1/deliveries/<delivery_id>"): "deliveries:read",
    ("POST", "/v1/deliveries/<delivery_id>/retry"): "deliveries:write",
    ("POST", "/v1/events/<event_id>/replay"): "events:write",
    ("POST", "/v1/endpoints/<endpoint_id>/recover"): "deliveries:write",
    ("GET", "/v1/endpoints/<endpoint_id>/recoveries"): "deliveries:read",
    ("GET", "/v1/endpoints/<endpoint_id>/recoveries/<recovery_id>"): "deliveries:read",
    ("POST", "/v1/endpoints/<endpoint_id>/recoveries/<recovery_id>/cancel"): "deliveries:write",
    ("GET", "/v1/attempts/<attempt_id>"): "deliveries:read",
    ("GET", "/v1/audit-log"): "audit_log:read",
}
ANY_KEY = {("GET", "/v1/meta")}
KEYED = (*SCOPES, *ANY_KEY)

MISSING = {
    "key_id": "key_01kjpx8tcmej9svxw1fyydhpy2",
    "event_id": "evt_01kjpx8tcmej9svxw1fyydhpy2",
    "name": "missing.type",
    "endpoint_id": "ep_01kjpx8tcmej9svxw1fyydhpy2",
    "delivery_id": "dlv_01kjpx8tcmej9svxw1fyydhpy2",
    "code": "not_found",
    "filename": "docs.js",
    "attempt_id": "att_01kjpx8tcmej9svxw1fyydhpy2",
    "recovery_id": "rcv_01kjpx8tcmej9svxw1fyydhpy2",
}


def path_of(rule: str, ids: dict[str, str] | None = None) -> str:
    """Fill the parameters of a rule; without `ids`, those of the API name nothing that there is."""
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda match: (ids or MISSING)[match[1]], rule)
