"""One row that cannot be used stops nobody else's deliveries."""

from sqlalchemy import update

from app.core import json_body
from app.core.clock import now
from app.endpoints.models import Endpoint
from app.events import service as events
from app.events.service import Draft
from tests import receivers
from tests.flows.steps import make_endpoint, publish


def test_an_endpoint_whose_secrets_cannot_be_read_waits_and_the_others_are_served(api, resources, drain):
    with receivers.ok() as receiver:
        broken, good = make_endpoint(api, receiver, "/broken"), make_endpoint(api, receiver, "/good")
        with resources.transaction() as uow:
            uow.session.execute(
                update(Endpoint)
                .where(Endpoint.id == broken["id"])
                .values(signing_secret="v1:gone:AAAA", updated_at=now())
            )
        publish(api)
        assert drain() == 1
        assert [request.path for request in receiver.requests] == ["/good"]
    (delivery,) = api.get(f"/v1/deliveries?endpoint_id={broken['id']}").json["data"]
    assert (delivery["status"], delivery["attempt_count"]) == ("pending", 0)
    assert good["id"]


def test_an_event_that_no_request_could_make_is_read_all_the_same(api, resources, drain):
    deep = json_body.read_stored("[" * 200 + "]" * 200)
    with receivers.ok() as receiver:
        make_endpoint(api, receiver, filter={"path": "/data/a", "op": "exists"})
        with resources.transaction() as uow:
            draft = Draft("message.received", {"a": deep, "b": 10**30})
            made = events.publish(uow, workspace_id=api.workspace_id, draft=draft)
        assert drain() == 1
        assert len(receiver.requests) == 1
    shown = json_body.read_stored(api.get(f"/v1/events/{made.id}").data)
    assert shown["data"] == {"a": deep, "b": 10**30}
