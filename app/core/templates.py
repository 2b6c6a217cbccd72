"""Templates that customers write: Liquid with limits, and with no clock, chance, files or access to Python objects.

The same variables always give the same text, and values are never rendered again: `{{ 7 | times: 7 }}` in a value
stays as it is. In JSON, values are written by the `json` filter, quotes included: `{"text": {{ data.text | json }}}`
is valid JSON whatever the text is. A variable that is missing counts as false in conditions and can be given a
`default`; printed, looped over or filtered otherwise it is an error.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from math import isfinite
from typing import Any

from liquid import RenderContext
from liquid.builtin.expressions.primitive import Blank, Empty
from liquid.builtin.output import OutputNode
from liquid.exceptions import LiquidError, LiquidTypeError, UndefinedError

from app.core.template_engine import BUGS_OF_A_TEMPLATE, ENVIRONMENT, Context, Missing, weigh

MAX_SOURCE_LENGTH = 32 * 1024
MAX_TAG_LENGTH = 1024

_SHOWN_CHARACTERS = 200
_SHORT = 2048
_OPENING = re.compile(r"\{\{|\{%")
_CLOSING = {"{{": "}}", "{%": "%}"}
_GAP = re.compile(r"\s{100}")
_VERBATIM = re.compile(r"\{%-?\s*(raw|doc)\s*-?%\}")

Path = tuple[str | int, ...]


class TemplateFault(Exception):
    """What is wrong with a template: a sentence, and the line of the template where there is one."""

    def __init__(self, detail: str, line: int | None) -> None:
        super().__init__(detail if line is None else f"Line {line}: {detail}")
        self.detail = detail
        self.line = line


class TemplateInvalid(TemplateFault):
    """The source is no template."""


class TemplateFailed(TemplateFault):
    """The template cannot be rendered with these variables."""


class Template:
    """A template that was read; safe to share between threads."""

    def __init__(self, source: str) -> None:
        _check_source(source)
        with _faults(TemplateInvalid, source):
            self._parsed = ENVIRONMENT.from_string(source)
            for node in self._parsed.nodes:
                weigh(node, RenderContext(self._parsed))
        self._source = source

    def render(self, variables: Mapping[str, Any]) -> str:
        """Give the text; raises `TemplateFailed`."""
        context = Context(self._parsed, globals=variables)
        buffer = context.get_buffer()
        with _faults(TemplateFailed, self._source):
            self._parsed.render_with_context(context, buffer)
        return buffer.getvalue()

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """Give the value with its type if the template is one expression and nothing else, or its text."""
        nodes = self._parsed.nodes
        if len(nodes) != 1 or not isinstance(nodes[0], OutputNode):
            return self.render(variables)
        with _faults(TemplateFailed, self._source):
            return _plain(nodes[0].expression.evaluate(Context(self._parsed, globals=variables)))

    def variables(self) -> dict[Path, int]:
        """Give the paths that are looked up, each with the line of its first use; `a[b].c` counts as `a` and `b`."""
        found: dict[Path, int] = {}
        for uses in self._parsed.analyze().globals.values():
            for use in uses:
                path = []
                for segment in use.segments:
                    if isinstance(segment, list):
                        break
                    path.append(segment)
                found.setdefault(tuple(path), _line(self._source, use.span.index))
        return found


def compile_template(source: str) -> Template:
    """Read a template, or give the one that was read before; raises `TemplateInvalid`."""
    return (_short_template if len(source) <= _SHORT else _long_template)(source)


# A parsed template takes a hundred times the memory of its source: long ones must not fill the cache.
_short_template = lru_cache(maxsize=256)(Template)
_long_template = lru_cache(maxsize=16)(Template)


def _check_source(source: str) -> None:
    """Refuse what takes Liquid's lexer quadratic time: tags that are long, not closed, or full of blanks."""
    if len(source) > MAX_SOURCE_LENGTH:
        raise TemplateInvalid(f"A template has up to {MAX_SOURCE_LENGTH} characters.", None)
    position = 0
    while opening := _OPENING.search(source, position):
        closing = _CLOSING[opening[0]]
        end = source.find(closing, opening.end())
        line = _line(source, opening.start())
        if end < 0:
            raise TemplateInvalid(f"`{opening[0]}` is not closed by `{closing}`.", line)
        if end - opening.start() > MAX_TAG_LENGTH:
            raise TemplateInvalid(f"A tag has up to {MAX_TAG_LENGTH} characters.", line)
        inner, position = source[opening.end() : end], end + len(closing)
        if not inner.strip("- \t\r\n"):
            raise TemplateInvalid(f"There is nothing between `{opening[0]}` and `{closing}`.", line)
        if _GAP.search(inner):
            raise TemplateInvalid("A tag has up to 99 blanks in a row.", line)
        if verbatim := _VERBATIM.fullmatch(source, opening.start(), position):
            block_end = re.compile(rf"\{{%-?\s*end{verbatim[1]}\s*-?%\}}").search(source, position)
            if block_end is None:
                raise TemplateInvalid(f"`{verbatim[1]}` is not closed by `end{verbatim[1]}`.", line)
            position = block_end.end()


@contextmanager
def _faults(fault: type[TemplateFault], source: str) -> Iterator[None]:
    try:
        yield
    except UndefinedError as error:
        name = str(error.message).removesuffix(" is undefined").strip("'")
        sentence = f'`{_cut(name)}` is missing; `| default: ""` stands in for what may be missing.'
        raise fault(sentence, _line_of(error, source)) from None
    except LiquidTypeError as error:
        raise fault("Values of these kinds do not go together.", _line_of(error, source)) from None
    except LiquidError as error:
        message = _cut(str(error.message))
        raise fault(f"{message[:1].upper()}{message[1:]}.", _line_of(error, source)) from None
    except BUGS_OF_A_TEMPLATE:
        raise fault("A value is of a kind that cannot be used like this.", None) from None


def _line_of(error: LiquidError, source: str) -> int:
    index = error.token.start_index if error.token else 0
    return _line(source, index if index >= 0 else len(source))


def _line(source: str, index: int) -> int:
    return source.count("\n", 0, index) + 1


def _cut(message: str) -> str:
    return message if len(message) <= _SHOWN_CHARACTERS else message[:_SHOWN_CHARACTERS] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, Missing | Empty | Blank):
        return str(value)  # which raises for what is missing
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("a numeral of hundreds of digits; neither infinity nor NaN is JSON")
    return list(value) if isinstance(value, tuple | range) else value
