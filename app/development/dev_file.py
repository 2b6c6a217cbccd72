"""`dev.json` in the data directory: how programs on this machine reach what `./botbat up` runs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from config.settings import write_private


@dataclass(frozen=True, slots=True)
class DevFile:
    """What `up` made at its first start, and where it listens now. The key makes it private (mode 0600)."""

    base_url: str
    console_url: str
    docs_url: str
    api_key: str
    workspace_id: str
    endpoint_id: str
    inbox_url: str
    ca_file: str
    flower_url: str
    flower_user: str
    flower_password: str


def load(data_dir: Path) -> DevFile | None:
    """Give the file's content, or None where there is none that can be used."""
    try:
        return DevFile(**json.loads(_path(data_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save(data_dir: Path, content: DevFile) -> None:
    """Write the file, readable by its owner alone."""
    write_private(_path(data_dir), json.dumps(asdict(content), indent=2) + "\n")


def _path(data_dir: Path) -> Path:
    return data_dir / "dev.json"
