import re
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

STATIC = Path(__file__).parents[2] / "app" / "static"
VENDOR = STATIC / "vendor"
PACKAGES: list[dict[str, Any]] = tomllib.loads((VENDOR / "VENDOR.toml").read_text(encoding="utf-8"))[
    "package"
]

LOADABLE = [path for path in sorted(STATIC.rglob("*")) if path.suffix in {".html", ".js", ".css"}]
OURS = [path for path in LOADABLE if VENDOR not in path.parents]

# What makes a browser load or send something by itself, with another host as its target.
LOADS_FROM_ELSEWHERE = re.compile(
    r"""
      <(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|href|data)\s*=\s*["']?\s*(?:\w+:)?//
    | @import\s+(?:url\()?\s*["']?\s*(?:\w+:)?//
    | \burl\(\s*["']?\s*(?:https?:)?//
    | \b(?:fetch|import|importScripts|sendBeacon|EventSource|WebSocket|Worker|open)
      \s*\(\s*(?:"\w+"\s*,\s*)?["'`](?:\w+:)?//
    | \.(?:src|action)\s*=\s*["'`](?:\w+:)?//
    """,
    re.VERBOSE | re.IGNORECASE,
)


LISTED: list[tuple[Path, str]] = [
    (VENDOR / package["directory"] / name, digest)
    for package in PACKAGES
    for name, digest in package["sha256"].items()
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package["name"])
def test_a_vendored_package_says_what_it_is(package):
    assert package.keys() >= {"name", "version", "licence", "npm", "integrity", "directory", "sha256"}
    assert package["npm"] == f"{package['name']}@{package['version']}"
    assert {"LICENSE"} <= package["sha256"].keys()


def test_the_list_names_every_vendored_file_once():
    there = {path for path in VENDOR.rglob("*") if path.is_file()} - {VENDOR / "VENDOR.toml"}
    assert sorted(path for path, _ in LISTED) == sorted(there)


@pytest.mark.parametrize(("path", "digest"), LISTED, ids=lambda value: getattr(value, "name", ""))
def test_a_vendored_file_is_the_published_one(path, digest):
    assert sha256(path.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("path", LOADABLE, ids=lambda path: path.name)
def test_nothing_that_we_serve_loads_from_another_host(path):
    assert LOADS_FROM_ELSEWHERE.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_own_files_name_no_other_host(path):
    assert re.findall(r"""["'(=`]\s*(?:\w+:)?//[^"'\s]*""", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<img src='//cdn.example/x.png'>",
        '@import "https://cdn.example/x.css";',
        "a{background:url(//cdn.example/x.png)}",
        'fetch("https://api.example/")',
        "navigator.sendBeacon('//t.example')",
        'x.open("GET","https://api.example")',
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert LOADS_FROM_ELSEWHERE.search(source)


def test_the_reference_page_has_no_inline_script_or_handler():
    page = (STATIC / "docs.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+\s*=|javascript:", page) == []


def test_the_reference_asks_no_validator_and_keeps_no_key():
    script = (STATIC / "docs.js").read_text(encoding="utf-8")
    assert "validatorUrl: null" in script
    assert "persistAuthorization: false" in script


@pytest.mark.parametrize(
    "address", re.findall(r'(?:src|href)="(/static/[^"]+)"', (STATIC / "docs.html").read_text())
)
def test_what_the_reference_page_loads_is_there(address):
    assert (STATIC / address.removeprefix("/static/")).is_file()
