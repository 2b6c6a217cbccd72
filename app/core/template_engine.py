"""Liquid with limits that hold: the parts of python-liquid that are replaced, and the counting of steps.

Liquid's own limits leave holes (loops after loops, filters after filters, comparisons of large values), so every
rendering has a number of steps besides: the weight of a loop's body each time it runs, and one for every few
characters that are looked up, filtered or written. It is counted, not timed: what works here works on all machines.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from sys import getsizeof
from types import NoneType
from typing import Any, TextIO

import liquid
from liquid import RenderContext, StrictDefaultUndefined, Token
from liquid.ast import BlockNode, Node
from liquid.builtin.content import Literal
from liquid.builtin.expressions import LoopExpression
from liquid.builtin.expressions.arguments import KeywordArgument
from liquid.builtin.expressions.primitive import RangeLiteral
from liquid.builtin.illegal import Illegal
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags import (
    assign_tag,
    capture_tag,
    case_tag,
    comment_tag,
    for_tag,
    if_tag,
    inline_comment_tag,
    unless_tag,
)
from liquid.exceptions import FilterError, LiquidError, ResourceLimitError
from liquid.output import LimitedStringIO
from liquid.token import TOKEN_EXPRESSION
from liquid.undefined import UNDEFINED
from liquid.utils import ReadOnlyChainMap

from app.core.template_filters import FILTERS, MAX_DIGITS, MAX_TEXT_LENGTH, TooLong, checked, text

MAX_PARTS = 100  # values, operators and filters of one tag
MAX_LOOP = 10_000
MAX_OUTPUT_BYTES = 256 * 1024
MAX_STEPS = 200_000
# What the library and its filters raise when a value is not of the kind that they expect.
BUGS_OF_A_TEMPLATE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)

_CHARACTERS_A_STEP = 16
_CHARACTERS_AN_ITEM = 4  # what an array costs for each item, however short that is
_NODE_STEPS = 3
_FILTER_STEPS = 10
# Words that Liquid takes for its own even as names of members; strings are matched so that they are passed over.
_MEMBER = re.compile(
    r"""("[^"]*"|'[^']*')|(?<!\.)\.(true|false|nil|null|empty|blank|and|or|contains|not|in|offset|limit|reversed|cols"""
    r"""|continue|with|for|as|if|else|required)(?![\w-])"""
)


class Missing(StrictDefaultUndefined):
    """A variable that is not there: false in conditions, an error elsewhere."""

    __slots__ = ()
    allowed_properties = StrictDefaultUndefined.allowed_properties | {"__class__", "__liquid__"}


class _Range(RangeLiteral):
    """A range of bounded length: it may be searched, sorted or reversed."""

    __slots__ = ()

    def evaluate(self, context: RenderContext) -> range:
        found = super().evaluate(context)
        if found.stop - found.start > MAX_LOOP:
            raise ResourceLimitError(f"a range has up to {MAX_LOOP} numbers", token=self.token)
        _metered(context).spend(len(found) // _CHARACTERS_AN_ITEM)
        return found


class _OutputNode(OutputNode):
    """An expression that is printed."""

    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        return buffer.write(text(self.expression.evaluate(context)))


class _Output(Output):
    node_class = _OutputNode


class _Body(BlockNode):
    """What a loop repeats: each time costs as many steps as it has parts, be they used or not."""

    __slots__ = ("weight",)
    weight: int

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        _metered(context).spend(self.weight)
        return super().render_to_output(context, buffer)


class _ForNode(for_tag.ForNode):
    __slots__ = ()

    def __init__(
        self, token: Token, expression: LoopExpression, block: BlockNode, default: BlockNode | None = None
    ) -> None:
        super().__init__(token, expression, _Body(block.token, block.nodes), default)


class _ForTag(for_tag.ForTag):
    node_class = _ForNode


class _Buffer(LimitedStringIO):
    """A limited text, each write of which costs steps."""

    def __init__(self, context: "Context", limit: int) -> None:
        super().__init__(limit)
        self._context = context

    def write(self, written: str) -> int:
        self._context.spend(len(written) // _CHARACTERS_A_STEP)
        return super().write(written)


class Context(RenderContext):
    """The state of one rendering, with its steps."""

    __slots__ = ("_held", "_steps")

    def __init__(self, template: liquid.BoundTemplate, *, globals: Mapping[str, object]) -> None:  # noqa: A002
        super().__init__(template, globals=globals)
        self._held = 0
        self._steps = MAX_STEPS
        # Without the `now` and `today` of Liquid: retries and other machines have to render the same.
        self.scope = ReadOnlyChainMap(self.locals, self.globals)

    def spend(self, steps: int) -> None:
        """Count steps; raises `ResourceLimitError` when none is left."""
        self._steps -= steps
        if self._steps < 0:
            raise ResourceLimitError("this takes too much work: loops or values are too large", token=None)

    def spend_on(self, value: Any) -> None:
        """Count the steps of whatever walks through a value; counting ends where the steps do."""
        if type(value) in (int, float, bool, NoneType):
            return
        size, pending = 0, [value]
        enough = self._steps * _CHARACTERS_A_STEP
        while pending and size <= enough:
            found = pending.pop()
            size += _CHARACTERS_AN_ITEM
            kind = type(found)
            if kind is str:
                size += len(found)
            elif kind is dict:
                pending += found
                pending += found.values()
            elif kind in (list, tuple, range):
                pending += found
        self.spend(1 + size // _CHARACTERS_A_STEP)

    def get(self, path: list[object], *, token: Token | None, default: object = UNDEFINED) -> object:
        """Look a variable up."""
        found = super().get(path, token=token, default=default)
        self.spend_on(found)
        return found

    def get_item(self, obj: Any, key: Any) -> Any:
        """Give a member; `codes.404` is the member "404" of an object and the item 404 of an array."""
        return super().get_item(obj, str(key) if type(obj) is dict and type(key) is int else key)

    def assign(self, key: str, val: Any) -> None:
        """Set a variable of the template."""
        self._held += getsizeof(val) - getsizeof(self.locals.get(key, None))
        super().assign(key, val)

    def get_size_of_locals(self) -> int:
        """Give about the bytes of what was assigned, without Liquid's walk through all of it."""
        return self._held

    def get_buffer(self, buf: TextIO | None = None) -> LimitedStringIO:
        """Give the text that is written to; a captured one counts as output, too."""
        return _Buffer(self, MAX_OUTPUT_BYTES - (buf.size if isinstance(buf, LimitedStringIO) else 0))

    def filter(self, name: str, token: Token | None) -> Any:
        """Give the filter as a function that counts and checks."""

        def apply(value: Any, *arguments: Any, **named: Any) -> Any:
            for given in (value, *arguments):
                if isinstance(given, Missing) and name != "default":
                    str(given)  # raises, with the variable's name
            try:
                result = checked(FILTERS[name](value, *arguments, **named))
            except TooLong:
                limit = f"{MAX_TEXT_LENGTH // 1024} KiB of text or {MAX_DIGITS} digits"
                raise FilterError(f"the filter `{name}` would give more than {limit}", token=token) from None
            except (LiquidError, *BUGS_OF_A_TEMPLATE):
                kinds = ", ".join(map(_kind, arguments))
                given = f"{_kind(value)} with {kinds}" if kinds else _kind(value)
                raise FilterError(f"the filter `{name}` cannot be applied to {given}", token=token) from None
            self.spend_on(result)
            return result

        return apply


class _Parsed(liquid.BoundTemplate):
    context_class = Context

    def make_partial_namespace(
        self, partial: bool, render_args: Mapping[str, object]
    ) -> Mapping[str, object]:
        """Add no variable `partial`, which would hide the customer's."""
        del partial
        return render_args


class _Environment(liquid.Environment):
    context_depth_limit = 20
    loop_iteration_limit = MAX_LOOP
    local_namespace_limit = MAX_OUTPUT_BYTES
    output_stream_limit = MAX_OUTPUT_BYTES
    shorthand_indexes = True
    template_class = _Parsed

    def tokenizer(self) -> Callable[[str], Iterator[Token]]:
        """Give the lexer; to it, `data.limit` is `data["limit"]`."""
        lex = super().tokenizer()

        def tokens(source: str) -> Iterator[Token]:
            for token in lex(source):
                if token.kind == TOKEN_EXPRESSION:
                    yield token._replace(value=_MEMBER.sub(_quoted_member, token.value))
                else:
                    yield token

        return tokens

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        """Add the tags that have a use here: none that loads other templates."""
        del extra
        for tag in (
            *(Literal, Illegal, _Output, assign_tag.AssignTag, capture_tag.CaptureTag, case_tag.CaseTag),
            *(_ForTag, for_tag.BreakTag, for_tag.ContinueTag, if_tag.IfTag, unless_tag.UnlessTag),
            *(comment_tag.CommentTag, inline_comment_tag.InlineCommentTag),
        ):
            self.add_tag(tag)
        self.filters.update(FILTERS)


ENVIRONMENT = _Environment(undefined=Missing, strict_filters=True, autoescape=False)


def _quoted_member(match: re.Match[str]) -> str:
    return match[1] or f'["{match[2]}"]'


def _metered(context: RenderContext) -> Context:
    assert isinstance(context, Context)
    return context


def weigh(node: Node, context: RenderContext) -> int:
    """Check a node, and give the steps of rendering it once, but for the bodies of loops in it."""
    pending, parts, weight = list(node.expressions()), 0, _NODE_STEPS
    while pending:
        expression = pending.pop()
        filters = getattr(expression, "filters", None) or ()
        for each in filters:
            _check_filter(each.name, each.args, each.token)
        if type(expression) is RangeLiteral:
            expression.__class__ = _Range  # Liquid's parser has no other place to put it in
        parts += 1 + len(filters)
        if parts > MAX_PARTS:
            raise LiquidError(f"a tag has up to {MAX_PARTS} values, operators and filters", token=node.token)
        weight += len(getattr(expression, "path", "1")) + len(filters) * _FILTER_STEPS
        pending += expression.children()
    inner = sum(weigh(child, context) for child in node.children(context))
    if isinstance(node, _Body):
        node.weight = weight + inner
        return 0
    return weight + inner


def _check_filter(name: str, arguments: list[Any], token: Token) -> None:
    if name not in FILTERS:
        raise LiquidError(f"there is no filter `{name}`; there are {', '.join(sorted(FILTERS))}", token=token)
    named = [each for each in arguments if isinstance(each, KeywordArgument)]
    if any((name, each.name) != ("default", "allow_false") for each in named):
        raise LiquidError(f"the filter `{name}` has no argument `{named[0].name}`", token=token)
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    taken = [each for each in signature(FILTERS[name]).parameters.values() if each.kind in kinds][1:]
    needed = sum(each.default is Parameter.empty for each in taken)
    if not needed <= len(arguments) - len(named) <= len(taken):
        count = f"{needed}" if needed == len(taken) else f"{needed} to {len(taken)}"
        raise LiquidError(f"the filter `{name}` takes {count} arguments", token=token)


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "true or false", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "an array")
