"""The list of keys, when there are many and more come."""

import threading

from sqlalchemy import insert

from app.api_keys import service as api_keys
from app.api_keys.models import ApiKey
from app.core.clock import now
from app.core.ids import new_id
from tests.api import expect

MANY = 1000


def test_a_thousand_keys_are_listed_without_a_gap_while_more_are_made(api, resources):
    moment = now()
    rows = [
        {
            "id": new_id("key"),
            "workspace_id": api.workspace_id,
            "name": f"key {number}",
            "prefix": "bbat_live_000000",
            "key_hash": number.to_bytes(32, "big"),
            "hash_key_id": "k1",
            "scopes": ["*"],
            "allowed_cidrs": [],
            "created_at": moment,
        }
        for number in range(MANY)
    ]
    with resources.transaction() as uow:
        uow.connection.execute(insert(ApiKey), rows)
    listed, stop = threading.Event(), threading.Event()
    made: list[str] = []

    def make() -> None:
        while not stop.is_set():
            with resources.transaction() as uow:
                row, _ = api_keys.create(uow, workspace_id=api.workspace_id, name="meanwhile")
            made.append(row.id)
            listed.wait(0.05)

    maker = threading.Thread(target=make)
    maker.start()
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = expect.ok(api.get(f"/v1/api-keys?limit=50{cursor and '&cursor='}{cursor}"))
        seen += [key["id"] for key in page["data"]]
        cursor = page["next_cursor"]
    stop.set()
    maker.join()

    assert len(made) > 1
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen, reverse=True)
    assert (
        {api.key_id, *(row["id"] for row in rows)}
        <= set(seen)
        <= {
            api.key_id,
            *(row["id"] for row in rows),
            *made,
        }
    )


def test_pages_of_one_status_skip_the_others(api):
    kept = []
    for number in range(9):
        key_id = api.post("/v1/api-keys", {"name": str(number)}).json["id"]
        if number % 3:
            api.post(f"/v1/api-keys/{key_id}/revoke")
        else:
            kept.append(key_id)
    first = expect.ok(api.get("/v1/api-keys?status=active&limit=2"))
    rest = expect.ok(api.get(f"/v1/api-keys?status=active&limit=2&cursor={first['next_cursor']}"))
    assert [key["id"] for key in first["data"] + rest["data"]] == [*kept[::-1], api.key_id]
    assert rest["next_cursor"] is None
