"""What receivers have to know of the service."""

from typing import Any

from flask import current_app
from marshmallow import Schema, fields

from app.core.signing import SCHEMES
from app.rest import context
from app.rest.blueprint import ANY_KEY, ApiBlueprint

meta = ApiBlueprint("meta", "/v1/meta", "What receivers have to know of the service.")


class SignatureScheme(Schema):
    """How one of a delivery's signatures is verified; `{…}` stands for a value."""

    name = fields.String(required=True)
    signature_header = fields.String(required=True)
    timestamp_header = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Null: the timestamp is in the signature's header."},
    )
    id_header = fields.String(
        required=True, allow_none=True, metadata={"description": "Null: the id is not signed."}
    )
    signature_format = fields.String(
        required=True,
        metadata={"description": "Of the signature's header; what is in brackets may be absent."},
    )
    signed_content = fields.String(
        required=True, metadata={"description": "`{body}` is the body's bytes as they came."}
    )
    key = fields.String(required=True, metadata={"description": "What the endpoint's secret is as a key."})
    encoding = fields.String(required=True, metadata={"description": "Of `{signature}`: hex or base64."})
    algorithm = fields.String(required=True)
    tolerance_seconds = fields.Integer(
        required=True, metadata={"description": "How far a timestamp may be from the receiver's clock."}
    )


class Versions(Schema):
    """What is spoken, and by what."""

    api = fields.String(required=True)
    service = fields.String(required=True)


class MetaObject(Schema):
    """What receivers have to know of the service."""

    egress_addresses = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "CIDR blocks that deliveries come from; empty where none are stated."},
    )
    via_proxy = fields.Boolean(
        required=True, metadata={"description": "Whether deliveries go through an egress proxy."}
    )
    signature_schemes = fields.List(
        fields.Nested(SignatureScheme),
        required=True,
        metadata={"description": "Every delivery is signed by each; verify one of them."},
    )
    versions = fields.Nested(Versions, required=True)


@meta.api("", scope=ANY_KEY)
@meta.response(200, MetaObject)
def get_meta() -> Any:
    """Tell where deliveries come from and how they are signed; any valid key may ask."""
    settings = context.resources().settings
    return {
        "egress_addresses": [str(network) for network in settings.egress_addresses],
        "via_proxy": bool(settings.egress_proxy),
        "signature_schemes": SCHEMES,
        "versions": {"api": "v1", "service": current_app.config["API_VERSION"]},
    }
