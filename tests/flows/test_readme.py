"""The README shows what is tested: its snippets are those of docs/verify/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["verify.py", "verify.mjs", "verify.go", "verify.php"])
def test_the_readme_shows_the_tested_snippet(name):
    text = (ROOT / "docs" / "verify" / name).read_text()
    marked = re.search(r"--8<-- start\n(.*?)\n(?://|#) --8<-- end", text, re.DOTALL)
    assert marked is not None
    assert marked.group(1).rstrip() in (ROOT / "README.md").read_text()
