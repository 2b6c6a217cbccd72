"""What `./botbat up` shows: short lines, each with the name of who it is about."""

from pathlib import Path

import click

from app.development.dev_file import DevFile

_COLOURS = {"web": "green", "worker": "blue", "beat": "magenta", "flower": "yellow", "receiver": "cyan"}
_WIDTH = 9

_RUNNING = """
BotBat is running.

  API and console  {base_url}/
  API reference    {docs_url}
  API key          {api_key}
  Receiver         {receiver_url}/  (its authority: {ca_file})
  Flower           {flower_url}/  (user {flower_user}, password {flower_password})
  Logs             {logs}

Publish an event:

  curl {base_url}/v1/events -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' -d '{{"type": "message.received", "data": {{"text": "Hello"}}}}'

Ctrl-C stops everything.
"""


class Terminal:
    """Prints lines, in colours where somebody looks; on standard error when the other is for JSON."""

    def __init__(self, *, on_stderr: bool) -> None:
        self._on_stderr = on_stderr

    def say(self, name: str, text: str) -> None:
        """Print a line about somebody."""
        label = click.style(f"{name:<{_WIDTH}}", fg=_COLOURS.get(name, "white"), bold=True)
        click.echo(f"{label} {text}", err=self._on_stderr)

    def running(self, dev: DevFile, receiver_url: str, logs: Path) -> None:
        """Print how everything is reached."""
        values = {name: getattr(dev, name) for name in DevFile.__dataclass_fields__}
        click.echo(_RUNNING.format(receiver_url=receiver_url, logs=logs, **values), err=self._on_stderr)
