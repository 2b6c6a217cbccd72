"""What `./botbat check` looks at: format, lint, types, and who imports whom."""

import subprocess
import sys

from app.processes import ROOT

_STANDARD_ERROR = 2
_LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

CHECKS = {
    "format": ["-m", "ruff", "format", "--check", ".", "botbat"],
    "lint": ["-m", "ruff", "check", ".", "botbat"],
    "types": ["-m", "mypy"],
    "types of botbat": ["-m", "mypy", "botbat"],
    "imports": ["-c", _LINT_IMPORTS],
}


def run() -> dict[str, bool]:
    """Run every check, also after one that failed; gives which passed. What they print is on standard error."""
    passed = {}
    for name, command in CHECKS.items():
        print(f"--- {name}", file=sys.stderr, flush=True)
        finished = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=_STANDARD_ERROR, check=False)
        passed[name] = finished.returncode == 0
    return passed
