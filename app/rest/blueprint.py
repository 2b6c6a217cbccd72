"""The blueprint that all API features use: each route states its scope and body limit where it is registered."""

from collections.abc import Callable
from typing import Any

from flask_smorest import Blueprint
from marshmallow import Schema

from app.rest.parser import Parser

DEFAULT_BODY_BYTES = 1024 * 1024
PUBLIC = "public"  # a route that needs no key says so
ANY_KEY = "any key"  # and one that every valid key may use, whatever its scopes

_View = Callable[..., Any]


class ApiBlueprint(Blueprint):
    """A group of routes of one feature."""

    ARGUMENTS_PARSER = Parser()

    def __init__(self, name: str, url_prefix: str, description: str) -> None:
        super().__init__(name, name, url_prefix=url_prefix, description=description)
        self._prepare_doc_cbks.append(_document)

    def arguments(self, schema: type[Schema], **kwargs: Any) -> Callable[[_View], _View]:
        """Read the body or the query by a schema; the view gets it as its first argument."""
        fields = schema()
        # An absent body is `{}`, so it may be absent where `{}` will do.
        required = any(field.required for field in fields.fields.values())
        decorator: Callable[[_View], _View] = super().arguments(fields, required=required, **kwargs)
        return decorator

    def response(
        self, status_code: int, schema: type[Schema] | dict[str, Any] | None = None, **kwargs: Any
    ) -> Callable[[_View], _View]:
        """Write the answer by a schema. One that the view makes itself can be described by a JSON Schema."""
        decorator: Callable[[_View], _View] = super().response(status_code, schema, **kwargs)
        return decorator

    def alt_response(self, status_code: int, **kwargs: Any) -> Callable[[_View], _View]:
        """Document another answer."""
        decorator: Callable[[_View], _View] = super().alt_response(status_code, **kwargs)
        return decorator

    def api(
        self,
        rule: str,
        method: str = "GET",
        *,
        scope: str,
        max_body_bytes: int = DEFAULT_BODY_BYTES,
        shown_once: str | None = None,
        one_write: bool = False,
        writes: bool = False,
    ) -> Callable[[_View], _View]:
        """Register a view. `scope` is what the key needs, or `ANY_KEY` or `PUBLIC`.

        `shown_once` names a field of the answer that no idempotent replay shows again. `one_write` promises that the
        view writes with at most one statement, which then needs no transaction around it. `writes` says that a GET
        writes, as every other method may.
        """

        def register(view: _View) -> _View:
            # On the view itself, where the edge finds it, and for the OpenAPI document.
            view.scope = scope  # type: ignore[attr-defined]
            view.max_body_bytes = max_body_bytes  # type: ignore[attr-defined]
            view.shown_once = shown_once  # type: ignore[attr-defined]
            view.one_write = one_write  # type: ignore[attr-defined]
            view.writes = writes  # type: ignore[attr-defined]
            documented = self.doc(operationId=view.__name__, **({} if scope != PUBLIC else {"security": []}))(
                view
            )
            documented._apidoc["rules"] = {"scope": scope, "rule": rule, "method": method}  # noqa: SLF001
            registered: _View = super(ApiBlueprint, self).route(rule, methods=[method])(documented)
            return registered

        return register


def _document(doc: dict[str, Any], info: dict[str, Any], *, method: str, **_kw: Any) -> dict[str, Any]:
    """Add the error answers that a route can give by what it is."""
    rules = info["rules"]
    statuses = []
    if rules["scope"] != PUBLIC:
        # Those that the view declares; a string is the name of a component.
        for answer in (each for each in doc["responses"].values() if isinstance(each, dict)):
            answer["headers"] = {"RateLimit-Policy": "RateLimitPolicy", "RateLimit": "RateLimit"}
        statuses += [401, 403, 429, 503]
        doc["x-required-scope"] = None if rules["scope"] == ANY_KEY else rules["scope"]
        statuses.append(400)
        if method == "get":
            statuses.append(422)
        else:
            statuses += [409, 413, 415, 422]
    if "<" in rules["rule"]:
        statuses.append(404)
    for status in statuses:
        doc.setdefault("responses", {}).setdefault(str(status), f"Problem{status}")
    if method == "delete":
        # It has no meaning there (RFC 9110, 9.3.5); an empty object does no harm, and need not be documented.
        doc.pop("requestBody", None)
    if method == "post" and rules["scope"] != PUBLIC:
        doc.setdefault("parameters", []).append("IdempotencyKey")
    return doc
