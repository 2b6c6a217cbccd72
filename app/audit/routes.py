"""HTTP route of the audit log."""

from typing import Any

from app.audit import service
from app.audit.models import ID_PREFIX
from app.audit.schemas import AuditEntryList, AuditQuery
from app.core.pagination import page_request
from app.rest import context
from app.rest.blueprint import ApiBlueprint

audit_log = ApiBlueprint("audit_log", "/v1/audit-log", "Who changed what, when and from where.")


@audit_log.api("", scope="audit_log:read")
@audit_log.arguments(AuditQuery, location="query")
@audit_log.response(200, AuditEntryList)
def list_audit_log(query: dict[str, Any]) -> Any:
    """List changes, newest first."""
    return service.list_entries(
        context.uow(),
        workspace_id=context.workspace_id(),
        page=page_request(query["limit"], query["cursor"], ID_PREFIX),
        actor=query["actor"],
        action=query["action"],
        resource=query["resource"],
        since=query["since"],
        until=query["until"],
    )
