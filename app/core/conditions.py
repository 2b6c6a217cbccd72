"""Condition trees over a JSON document: the filters of endpoints and the conditions of workflows.

A tree is `{"all": [...]}`, `{"any": [...]}`, `{"not": ...}`, or a leaf, which is an object with `path` (a
JSON Pointer, RFC 6901), `op`, and `value`.
"""

import json
import operator
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from app.core.errors import FieldError

MAX_DEPTH = 10  # a lone leaf has depth 1
MAX_LEAVES = 100
MAX_CHOICES = 100
MAX_FAULTS = 100

_GROUPS = ("all", "any", "not")
_LEAF_KEYS = ("path", "op", "value")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
# No list is longer, and int() refuses digits by the thousand.
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
}
_MISSING = object()
_SHOWN_CHARACTERS = 60
_SHOWN_CHOICES = 5
_SHOWN_BITS = 128


def check(tree: object) -> list[FieldError]:
    """Give the faults of a tree in order, at most `MAX_FAULTS`; pointers are relative to the tree."""
    return list(islice(_faults(tree), MAX_FAULTS))


def matches(tree: Any, document: Any) -> bool:
    """Tell whether the document meets a checked tree; never raises, whatever JSON the document is."""
    if "all" in tree:
        return all(matches(child, document) for child in tree["all"])
    if "any" in tree:
        return any(matches(child, document) for child in tree["any"])
    if "not" in tree:
        return not matches(tree["not"], document)
    return _holds(tree, _resolve(tree["path"], document))


def explain(tree: Any, document: Any) -> str | None:
    """Say why the document does not meet a checked tree, by the first leaf that decided it; None if it does.

    The sentence quotes the document, so it is for those who may read that, and not for logs.
    """
    if matches(tree, document):
        return None
    leaf, has_alternatives = _decider(tree, document)
    found = _resolve(leaf["path"], document)
    name = f"`{_cut(leaf['path'])}`" if leaf["path"] else "The whole document"
    state = "is missing" if found is _MISSING else f"is {_found(found, leaf.get('value'))}"
    # A leaf that holds and yet spoils the match stands under a `not`.
    negation = "not " if _holds(leaf, found) else ""
    ending = "; no other alternative of the condition holds either" if has_alternatives else ""
    return f"{name} {state}, but must {negation}{_demand(leaf)}{ending}."


def _faults(tree: object) -> Iterator[FieldError]:
    pending: list[tuple[str, object, int]] = [("", tree, 1)]
    leaves = 0
    while pending:
        pointer, node, depth = pending.pop()
        if depth > MAX_DEPTH:
            yield FieldError(pointer, "too_deep", f"Conditions nest up to {MAX_DEPTH} levels.")
            continue
        group = next((key for key in _GROUPS if isinstance(node, dict) and key in node), None)
        if group is None or not isinstance(node, dict):
            leaves += 1
            if leaves > MAX_LEAVES:
                yield FieldError("", "too_many", f"A condition tree has up to {MAX_LEAVES} leaves.")
                return
            yield from _leaf_faults(pointer, node)
            continue
        yield from _unknown_keys(pointer, node, (group,))
        inner, place = node[group], f"{pointer}/{group}"
        if group == "not":
            pending.append((place, inner, depth + 1))
        elif not isinstance(inner, list) or not inner:
            yield FieldError(place, "invalid", f"`{group}` takes a list of at least one condition.")
        else:
            pending += [(f"{place}/{i}", inner[i], depth + 1) for i in reversed(range(len(inner)))]


def _leaf_faults(pointer: str, node: object) -> Iterator[FieldError]:
    if not isinstance(node, dict) or not ("path" in node or "op" in node):
        detail = "A condition is an object with `all`, `any` or `not`, or with `path`, `op` and `value`."
        yield FieldError(pointer, "invalid", detail)
        return
    yield from _unknown_keys(pointer, node, _LEAF_KEYS)
    path, op = node.get("path"), node.get("op")
    if "path" not in node:
        yield FieldError(f"{pointer}/path", "required", "A condition needs a `path`.")
    elif not isinstance(path, str) or not _POINTER.fullmatch(path):
        detail = "A path is a JSON Pointer such as `/data/amount`: empty, or it starts with `/`; `~` is `~0`."
        yield FieldError(f"{pointer}/path", "invalid_pointer", detail)
    if "op" not in node:
        yield FieldError(f"{pointer}/op", "required", "A condition needs an `op`.")
    elif not isinstance(op, str) or op not in OPERATORS:
        detail = f"There is no such operator; there are {', '.join(OPERATORS)}."
        yield FieldError(f"{pointer}/op", "unknown_operator", detail)
    elif "value" in node:
        if detail := _value_fault(op, node["value"]):
            yield FieldError(f"{pointer}/value", "invalid", detail)
    elif op != "exists":
        yield FieldError(f"{pointer}/value", "required", f"`{op}` needs a `value`.")


def _value_fault(op: str, value: object) -> str:
    if op == "exists" and not isinstance(value, bool):
        return "`exists` takes true or false."
    if op == "in" and not (isinstance(value, list) and len(value) <= MAX_CHOICES):
        return f"`in` takes a list of up to {MAX_CHOICES} values."
    if op == "contains" and isinstance(value, list | dict):
        return "`contains` takes a string, a number, true, false or null."
    if op in ("starts_with", "ends_with") and not isinstance(value, str):
        return f"`{op}` takes a string."
    return ""


def _unknown_keys(pointer: str, node: dict[Any, Any], known: tuple[str, ...]) -> Iterator[FieldError]:
    wanted = " and ".join(f"`{key}`" for key in known)
    for key in node:
        if key not in known:
            step = str(key).replace("~", "~0").replace("/", "~1")
            yield FieldError(
                f"{pointer}/{step}", "unknown_field", f"Beside {wanted} nothing else may stand here."
            )


def _resolve(pointer: str, document: Any) -> Any:
    found = document
    for step in pointer.split("/")[1:]:
        if isinstance(found, dict):
            found = found.get(step.replace("~1", "/").replace("~0", "~"), _MISSING)
        elif isinstance(found, list) and _INDEX.fullmatch(step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return _MISSING
    return found


def _holds(leaf: Any, found: Any) -> bool:
    if leaf["op"] == "exists":
        return (found is not _MISSING) is leaf.get("value", True)
    return found is not _MISSING and _TESTS[leaf["op"]][1](found, leaf["value"])


def _kind(value: Any) -> str:
    # bool comes first: to Python it is an int, to JSON it is no number.
    return next((name for name, types in _KINDS.items() if isinstance(value, types)), "null")


def _equal(one: Any, other: Any) -> bool:
    # A stack instead of recursion, and instead of Python's ==, which ends with an error on deep documents.
    pending = [(one, other)]
    while pending:
        left, right = pending.pop()
        kind = _kind(left)
        if kind != _kind(right):
            return False
        if kind == "object":
            if left.keys() != right.keys():
                return False
            pending += [(left[key], right[key]) for key in left]
        elif kind == "array":
            if len(left) != len(right):
                return False
            pending += zip(left, right, strict=True)
        elif left != right:
            return False
    return True


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(found: Any, value: Any) -> bool:
        return _kind(found) == _kind(value) and _kind(value) in ("number", "string") and compare(found, value)

    return test


def _is_in(found: Any, choices: list[Any]) -> bool:
    return any(_equal(found, choice) for choice in choices)


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, list):
        return _is_in(value, found)
    return isinstance(found, str) and isinstance(value, str) and value in found


# What an operator is called in a sentence after "must", and its test of (found, value).
_TESTS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "eq": ("be", _equal),
    "ne": ("be other than", lambda found, value: not _equal(found, value)),
    "gt": ("be greater than", _ordered(operator.gt)),
    "gte": ("be at least", _ordered(operator.ge)),
    "lt": ("be less than", _ordered(operator.lt)),
    "lte": ("be at most", _ordered(operator.le)),
    "in": ("be one of", _is_in),
    "contains": ("contain", _contains),
    "starts_with": ("start with", lambda found, value: isinstance(found, str) and found.startswith(value)),
    "ends_with": ("end with", lambda found, value: isinstance(found, str) and found.endswith(value)),
}
OPERATORS = (*_TESTS, "exists")  # which alone judges a path that is absent


def _decider(tree: Any, document: Any) -> tuple[Any, bool]:
    """Give the first leaf that decided the outcome, and whether others could have turned it."""
    if "not" in tree:
        return _decider(tree["not"], document)
    group = next((key for key in ("all", "any") if key in tree), None)
    if group is None:
        return tree, False
    # One false child decides an `all`, one true child an `any`; else every child had its part.
    children = tree[group]
    decisive = next((child for child in children if matches(child, document) is (group == "any")), None)
    leaf, has_alternatives = _decider(decisive or children[0], document)
    return leaf, has_alternatives or (decisive is None and len(children) > 1)


def _demand(leaf: Any) -> str:
    op, value = leaf["op"], leaf.get("value", True)
    if op == "exists":
        return "be present" if value else "be absent"
    if op == "in":
        shown = ", ".join(_show(choice) for choice in value[:_SHOWN_CHOICES])
        more = f" or {len(value) - _SHOWN_CHOICES} more" if len(value) > _SHOWN_CHOICES else ""
        return f"be one of {shown}{more}" if value else "be one of an empty list"
    return f"{_TESTS[op][0]} {_show(value)}"


def _found(found: Any, wanted: Any) -> str:
    if isinstance(found, list | dict) and found:
        return f"an {_kind(found)}"
    # "150" beside 150: the kind is what went wrong.
    prefix = f"the {_kind(found)} " if {_kind(found), _kind(wanted)} == {"number", "string"} else ""
    return prefix + _show(found)


def _show(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"the given {_kind(value)}" if value else f"an empty {_kind(value)}"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a huge number"  # str() refuses digits by the thousand, too
    return json.dumps(_cut(value) if isinstance(value, str) else value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
