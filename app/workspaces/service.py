"""The rules of workspaces."""

from app.audit import service as audit
from app.core.errors import invalid_field
from app.core.ids import new_id
from app.core.unit_of_work import UnitOfWork
from app.workspaces.models import ID_PREFIX, Workspace

MAX_NAME_LENGTH = 100


def create(uow: UnitOfWork, *, name: str) -> Workspace:
    """Make a workspace; raises `Invalid` for a blank or overlong name."""
    name = name.strip()
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise invalid_field("/name", "length", f"A name has 1 to {MAX_NAME_LENGTH} printable characters.")
    workspace = Workspace(id=new_id(ID_PREFIX), name=name)
    uow.session.add(workspace)
    uow.session.flush()
    audit.record(uow, workspace_id=workspace.id, action="workspace.created", resource_id=workspace.id)
    return workspace
