"""No API key and no signing secret is where it does not belong, by the rules that docs/security.md gives away."""

import base64
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from sqlalchemy import select

from app.api_keys import tokens
from app.core.database import Base
from app.core.signing import generate_secret
from app.core.unit_of_work import Resources
from app.development.api import Api as Http
from app.processes import ROOT
from config.settings import Settings
from tests import receivers
from tests.flows.steps import url_of, wait_until

BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def rules() -> list[dict[str, Any]]:
    """Give the rules of docs/security.md, which are gitleaks' own form."""
    (block,) = BLOCK.findall((ROOT / "docs" / "security.md").read_text())
    found: list[dict[str, Any]] = tomllib.loads(block)["rules"]
    return found


def leaks(text: str) -> list[str]:
    """Give what a scanner with these rules finds."""
    return [
        match[rule["secretGroup"]]
        for rule in rules()
        if any(keyword in text.lower() for keyword in rule["keywords"])
        for match in re.finditer(rule["regex"], text, re.ASCII)
    ]


def leaks_under(folder: Path) -> dict[str, list[str]]:
    """Give what a scanner finds in the files that git has, or would take with `git add`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=folder, capture_output=True, check=True).stdout.decode()
    files = [folder / name for name in names.rstrip("\0").split("\0")]
    assert files
    found = {
        str(file.relative_to(folder)): leaks(file.read_bytes().decode("latin-1"))
        for file in files
        if file.is_file()
    }
    return {name: secrets for name, secrets in found.items() if secrets}


@pytest.mark.parametrize("make", [tokens.generate, generate_secret])
def test_the_rules_find_every_secret_that_we_make(make):
    for _ in range(200):
        secret = make()
        for text in (
            secret,
            f"KEY={secret}\n",
            f'{{"key":"{secret}"}}',
            f"Authorization: Bearer {secret}\r\n",
            f"https://example.com/?key={secret}&x=1",
            f"it's '{secret}'.",
            f"`{secret}`",
        ):
            assert leaks(text) == [secret], text


def test_the_rules_find_nothing_else():
    key = tokens.generate()
    for text in (
        "",
        key[: tokens.SHOWN_CHARACTERS],
        key[:-1],
        f"{key}0",
        f"x{key}",
        "bbat_live_",
        "whsec_" + base64.b64encode(b"x" * 32).decode(),
        "whsec_dGhpcyBpcyBhIHNlY3JldA==",
        generate_secret() + "=",
    ):
        assert leaks(text) == [], text


def test_the_repository_has_none():
    assert leaks_under(ROOT) == {}


def test_one_in_a_repository_is_found(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    key = tokens.generate()
    (tmp_path / "committed.bin").write_bytes(b"\x00\xff" + key.encode() + b"\xff")
    subprocess.run(["git", "add", "committed.bin"], cwd=tmp_path, check=True)
    (tmp_path / "new.py").write_text(f'KEY = "{key}"\n')
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "ignored").write_text(key)
    assert leaks_under(tmp_path) == {"committed.bin": [key], "new.py": [key]}


@pytest.fixture
def settings(process_settings: Settings) -> Settings:
    """Give those of the processes."""
    return process_settings


def everything_in(resources: Resources) -> str:
    """Give the text of every row of the database."""
    with resources.transaction(write=False) as uow:
        return "\n".join(
            repr([value.decode("latin-1") if isinstance(value, bytes) else value for value in row])
            for table in Base.metadata.sorted_tables
            for row in uow.connection.execute(select(table))
        )


def everything_in_redis(url: str) -> str:
    """Give the text of every key and message."""
    client: Any = redis.Redis.from_url(url, encoding="latin-1", decode_responses=True)
    read = {"string": client.get, "set": client.smembers, "hash": client.hgetall}
    read |= {"list": lambda name: client.lrange(name, 0, -1), "zset": lambda name: client.zrange(name, 0, -1)}
    text = "\n".join(f"{name} {read[client.type(name)](name)}" for name in client.scan_iter())
    client.close()
    return text


def test_a_whole_flow_leaves_none_in_logs_database_or_redis(api, resources, settings, run):
    url = run.web()
    run.worker()
    owner = Http(url, api.key)
    made = owner.post("/v1/api-keys", {"name": "leaky"})
    key, http = made["key"], Http(url, made["key"])
    chosen, header, payload = generate_secret(), "canary-in-a-header", "canary-in-a-payload"
    with receivers.ok() as receiver:
        fields = {"url": url_of(receiver), "events": ["message.received"], "headers": {"X-Canary": header}}
        endpoint = http.post("/v1/endpoints", fields)
        path = f"/v1/endpoints/{endpoint['id']}"
        http.patch(path, {"signing_secret": chosen})
        assert http.get(f"{path}/secret")["signing_secret"] == chosen
        http.post("/v1/events", {"type": "message.received", "data": {"text": payload}})
        receiver.wait_for_requests(1, timeout=20)
        wait_until(lambda: http.get(f"{path}/attempts")["data"])
    # Where a confused client puts them.
    confused = {"Authorization": f"Bearer {key}", "X-Request-Id": key, "User-Agent": key, "X-Secret": chosen}
    for method, place, body, status in (
        ("GET", f"/v1/events?key={key}", None, 200),
        ("GET", f"/{key}", None, 404),
        ("PATCH", path, {"url": chosen, key: chosen}, 422),
        ("PATCH", path, {"description": "Changed"}, 200),
    ):
        answer = requests.request(method, url + place, headers=confused, json=body, timeout=10)
        assert answer.status_code == status
    owner.post(f"/v1/api-keys/{made['id']}/revoke", {})
    assert http.status("/v1/events") == 401

    rows = everything_in(resources)
    logs = "\n".join(run.said())
    assert "message.received" in rows  # they are really there
    assert '"route":"/v1/api-keys/<key_id>/revoke"' in logs
    places = {"logs": logs, "database": rows, "Redis": everything_in_redis(settings.broker_url)}
    assert {name: found for name, text in places.items() if (found := leaks(text))} == {}
    master_key = base64.b64encode(settings.encryption_keys[0][1]).decode()
    for canary in (header, payload, master_key):
        assert [name for name, text in places.items() if canary in text] == (
            ["database"] if canary == payload else []
        )
