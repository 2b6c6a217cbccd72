"""What is kept of an answer's header lines."""

from typing import Final

KEPT_CHARACTERS: Final = 8 * 1024  # names and values of all kept headers together
KEPT_HEADERS: Final = 32

_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_LINE: Final = 256

_DROPPED_HEADERS: Final = frozenset(
    {"set-cookie", "set-cookie2", "authorization", "proxy-authenticate", "proxy-authorization"}
)
_DROPPED_HEADER_ENDINGS: Final = ("token", "secret")
# Unicode's Cc within latin-1: NUL above all, which PostgreSQL refuses in text.
_CONTROL_CHARACTERS: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])


class HeaderReader:
    """Reads header lines, and remembers those seen: most receivers send the same ones again and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, str]] = {}

    def read(self, head: bytearray) -> tuple[list[tuple[str, str]], bool]:
        """Give what may be kept of the final answer's headers, and whether they came to their end.

        Headers of interim answers and trailers are left out.
        """
        lines = bytes(head).split(b"\n")
        usual = lines.count(b"\r") == 1 and lines[-2] == b"\r"  # one block and nothing after it
        if usual and len(head) <= KEPT_CHARACTERS:
            known = self._known
            try:
                return [known[line] for line in lines[1:-2]][:KEPT_HEADERS], True
            except KeyError:
                pass  # read them one by one
        return self._read_each(lines)

    def _read_each(self, lines: list[bytes]) -> tuple[list[tuple[str, str]], bool]:
        headers: list[tuple[str, str]] = []
        inside = final = False
        for line in lines[:-1]:
            if line in {b"\r", b""}:
                if final:
                    return _cut(headers), True
                inside = False
            elif not inside:
                inside = True
                final = not line.partition(b" ")[2].startswith(b"1")
                headers = []
            else:
                header = self._known.get(line) or _read_header(line)
                if header is not None:
                    headers.append(header)
                    self._remember(line, header)
        return _cut(headers), False

    def _remember(self, line: bytes, header: tuple[str, str]) -> None:
        if len(line) <= _MAX_REMEMBERED_LINE:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[line] = header


def _read_header(line: bytes) -> tuple[str, str] | None:
    """Give name and value, or None for what is not kept."""
    name, _, value = line.decode("latin-1").translate(_CONTROL_CHARACTERS).partition(":")
    folded = name.strip().lower()
    if not folded or folded in _DROPPED_HEADERS or folded.endswith(_DROPPED_HEADER_ENDINGS):
        return None
    return name.strip(), value.strip()


def _cut(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give the first headers that fit into what is kept."""
    kept: list[tuple[str, str]] = []
    room = KEPT_CHARACTERS
    for name, value in headers[:KEPT_HEADERS]:
        room -= len(name) + len(value)
        if room >= 0:
            kept.append((name, value))
    return kept
