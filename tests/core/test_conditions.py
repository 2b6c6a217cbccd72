"""Promises about filters: what is accepted, what matches, and what a customer is told when nothing came."""

import copy
import json
import operator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.conditions import MAX_CHOICES, MAX_FAULTS, OPERATORS, check, explain, matches

BIG = 10**400  # no float is as large
EVENT = {
    "id": "evt_1",
    "type": "payment.failed",
    "data": {
        "amount": 150,
        "price": 1.0,
        "currency": "EUR",
        "at": "2026-03-01T10:00:00Z",
        "tags": ["vip", 1, True, None],
        "customer": {"name": "Ada", "ids": [1, 2]},
        "note": None,
        "test": True,
        "many": list(range(12)),
        "a/b": "slash",
        "m~n": "tilde",
        "~1": "decoded once",
        "": "empty",
        "01": "a member, no index",
        "-": "a member, no end",
    },
}


def leaf(path: Any = "/a", op: Any = "eq", value: Any = 1) -> dict[str, Any]:
    return {"path": path, "op": op, "value": value}


def nested(levels: int, tree: Any) -> Any:
    for _ in range(levels):
        tree = {"not": tree}
    return tree


def deep_list(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


# --- Any JSON, any tree, and the pointers of a document told a second time, from the document's side. ---

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([0, 1, 0.0, -0.0, 1.0, "0", "1", "", "a", "/", "~", 2**53, 2.0**53, 2**53 + 1, BIG]),
)
keys = st.sampled_from(
    ["a", "b", "0", "1", "01", "-", "", "/", "~", "~0", "~1", "a/b", "m~n", "value"]
) | st.text(max_size=3)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=15,
)
pointers = st.lists(keys, max_size=3).map(
    lambda steps: "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
)


def leaves_at(paths: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    def of(values: st.SearchStrategy[Any], *ops: str) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({"path": paths, "op": st.sampled_from(ops), "value": values})

    return st.one_of(
        of(documents, "eq", "ne", "gt", "gte", "lt", "lte"),
        of(st.lists(documents, max_size=4), "in"),
        of(scalars, "contains"),
        of(st.text(max_size=3), "starts_with", "ends_with"),
        of(st.booleans(), "exists"),
        st.fixed_dictionaries({"path": paths, "op": st.just("exists")}),
    )


leaves = leaves_at(pointers)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda children: {"all": children}),
        st.lists(inner, min_size=1, max_size=3).map(lambda children: {"any": children}),
        inner.map(lambda child: {"not": child}),
    ),
    max_leaves=8,
).filter(lambda tree: not check(tree))
# Almost trees: the right words in the wrong places.
near_trees = st.recursive(
    documents | leaves | st.sampled_from([[], {}, *OPERATORS]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["all", "any", "not", "path", "op", "value", "and"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


def table_of_pointers(document: Any) -> dict[str, Any]:
    """Give every pointer that resolves in the document, each with its value; each value has just one."""
    found = {"": document}
    if isinstance(document, dict):
        children = list(document.items())
    elif isinstance(document, list):
        children = [(str(index), item) for index, item in enumerate(document)]
    else:
        children = []
    for name, child in children:
        escaped = "".join({"~": "~0", "/": "~1"}.get(letter, letter) for letter in name)
        found |= {f"/{escaped}{rest}": value for rest, value in table_of_pointers(child).items()}
    return found


@settings(deadline=None)
@given(tree=near_trees | trees | documents, document=documents)
def test_checking_never_raises_and_what_it_accepts_never_raises_either(tree, document):
    if not check(tree):
        assert matches(tree, document) in (True, False)


@settings(deadline=None)
@given(tree=near_trees)
def test_every_fault_points_at_a_place_of_the_tree_or_at_a_member_that_it_lacks(tree):
    places = table_of_pointers(tree)
    for fault in check(tree):
        parent, _, member = fault.pointer.rpartition("/")
        assert fault.pointer in places or (fault.code == "required" and parent in places and member)
        assert fault.detail.endswith(".")


@settings(max_examples=500, deadline=None)
@given(tree=trees, document=documents)
def test_an_explanation_is_a_sentence_exactly_when_nothing_matches(tree, document):
    sentence = explain(tree, document)
    assert (sentence is None) is matches(tree, document)
    assert sentence is None or sentence.endswith(".")
    json.dumps(sentence)


@settings(deadline=None)
@given(tree=trees, document=documents)
def test_not_inverts(tree, document):
    assert matches({"not": tree}, document) is not matches(tree, document)


@settings(deadline=None)
@given(children=st.lists(leaves, min_size=1, max_size=5), document=documents)
def test_all_and_any_are_pythons(children, document):
    each = [matches(child, document) for child in children]
    assert matches({"all": children}, document) is all(each)
    assert matches({"any": children}, document) is any(each)


@settings(max_examples=500, deadline=None)
@given(one=documents, other=documents)
@example(one=2**53 + 1, other=2.0**53)
@example(one=[{"a": 1}], other=[{"a": True}])
@example(one=0.0, other=-0.0)
def test_values_are_equal_when_their_canonical_forms_are(one, other):
    assert matches(leaf("", "eq", copy.deepcopy(one)), one)
    assert not matches(leaf("", "ne", copy.deepcopy(one)), one)
    same = canonical(one) == canonical(other)
    assert matches(leaf("", "eq", other), one) is same
    assert matches(leaf("", "ne", other), one) is not same
    assert matches(leaf("", "in", [other]), one) is same
    assert matches(leaf("/0", "eq", other), [one]) is same


def canonical(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, int | float):
        return ("number", Fraction(value))
    if isinstance(value, list):
        return ("array", tuple(canonical(item) for item in value))
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(item)) for name, item in value.items()))
    return ("string", tuple(map(ord, value)))


@settings(max_examples=500, deadline=None)
@given(found=scalars, value=scalars)
@example(found=2**53 + 1, value=2.0**53)
@example(found=BIG, value=1.5)
@example(found=True, value=0)
def test_order_is_that_of_fractions_and_of_code_points_and_else_there_is_none(found, value):
    comparable = canonical(found)[0] == canonical(value)[0] in ("number", "string")
    one, other = (canonical(item)[1] for item in (found, value))
    ops = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
    for op, compare in ops.items():
        assert matches(leaf("", op, value), found) is (comparable and compare(one, other))


@settings(max_examples=500, deadline=None)
@given(document=documents, pointer=pointers)
def test_pointers_find_what_the_document_lists_and_nothing_else(document, pointer):
    table = table_of_pointers(document)
    for place, value in table.items():
        assert matches(leaf(place, "eq", value), document)
    assert matches({"path": pointer, "op": "exists"}, document) is (pointer in table)
    assert matches(leaf(pointer, "exists", value=False), document) is (pointer not in table)


# --- Tables. ---


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/data/amount", 150),
        ("/data/customer/ids/1", 2),
        ("/data/a~1b", "slash"),
        ("/data/m~0n", "tilde"),
        ("/data/~01", "decoded once"),
        ("/data/", "empty"),
        ("/data/01", "a member, no index"),
        ("/data/-", "a member, no end"),
        ("/data/note", None),
    ],
)
def test_a_path_finds(path, value):
    assert matches(leaf(path, "eq", value), EVENT)


@pytest.mark.parametrize(
    "path",
    [
        "/data/amoun",
        "/data/amount/0",
        "/data/tags/4",
        "/data/tags/00",
        "/data/tags/01",
        "/data/tags/-",
        "/data/tags/-1",
        "/data/tags/+1",
        "/data/tags/1 ",
        "/data/tags/1_0",
        "/data/tags/\u0661",  # a digit to Python, not to the RFC
        "/data/many/1\u0661",
        "/data/tags/" + "9" * 5000,
        "/data/tags/",
        "/data/note/x",
        "/data/currency/0",
        "/",
    ],
)
def test_a_missing_path_makes_every_leaf_false_also_ne_and_not_inverts_it(path):
    for op in OPERATORS:
        if op != "exists":
            tree = leaf(path, op, [None] if op == "in" else "")
            assert check(tree) == []
            assert not matches(tree, EVENT)
            assert matches({"not": tree}, EVENT)
    assert matches(leaf(path, "exists", value=False), EVENT)
    assert not matches(leaf(path, "exists", value=True), EVENT)
    assert not matches({"path": path, "op": "exists"}, EVENT)


@pytest.mark.parametrize(
    ("path", "op", "value", "expected"),
    [
        ("/data/amount", "eq", 150.0, True),
        ("/data/amount", "eq", "150", False),
        ("/data/amount", "ne", "150", True),
        ("/data/price", "eq", 1, True),
        ("/data/price", "eq", True, False),
        ("/data/test", "eq", True, True),
        ("/data/test", "eq", 1, False),
        ("/data/test", "ne", 1, True),
        ("/data/test", "ne", True, False),
        ("/data/note", "eq", None, True),
        ("/data/note", "eq", False, False),
        ("/data/note", "exists", True, True),
        ("/data/currency", "eq", "eur", False),
        ("/data/customer", "eq", {"ids": [1.0, 2], "name": "Ada"}, True),
        ("/data/customer", "eq", {"ids": [True, 2], "name": "Ada"}, False),
        ("/data/customer", "eq", {"ids": [2, 1], "name": "Ada"}, False),
        ("/data/customer", "eq", {"name": "Ada"}, False),
        ("/data/customer/ids", "eq", [1], False),
        ("/data/amount", "gt", 149.5, True),
        ("/data/amount", "gt", 150, False),
        ("/data/amount", "gte", 150, True),
        ("/data/amount", "lt", 150.5, True),
        ("/data/amount", "lt", 150, False),
        ("/data/amount", "lte", 150, True),
        ("/data/amount", "gt", "100", False),
        ("/data/amount", "lt", "999", False),
        ("/data/at", "gte", "2026-03-01T10:00:00Z", True),
        ("/data/at", "lt", "2026-03-01T09:59:59Z", False),
        ("/data/currency", "lt", "a", True),
        ("/data/test", "gt", 0, False),
        ("/data/test", "gte", True, False),
        ("/data/note", "lte", None, False),
        ("/data/tags", "gte", [], False),
        ("/data/currency", "in", ["USD", "EUR"], True),
        ("/data/currency", "in", ["USD"], False),
        ("/data/currency", "in", [], False),
        ("/data/test", "in", [1, 1.0], False),
        ("/data/customer/ids", "in", [[1, 2]], True),
        ("/type", "contains", "ment.f", True),
        ("/type", "contains", "", True),
        ("/type", "contains", "MENT", False),
        ("/data/currency", "contains", 1, False),
        ("/data/tags", "contains", "vip", True),
        ("/data/tags", "contains", "vi", False),
        ("/data/tags", "contains", None, True),
        ("/data/customer/ids", "contains", True, False),
        ("/data/customer/ids", "contains", 2.0, True),
        ("/data/customer", "contains", "name", False),
        ("/data/amount", "contains", 1, False),
        ("/type", "starts_with", "payment.", True),
        ("/type", "starts_with", "ayment.", False),
        ("/type", "ends_with", ".failed", True),
        ("/type", "ends_with", ".faile", False),
        ("/data/tags", "starts_with", "vip", False),
        ("/data/amount", "ends_with", "0", False),
    ],
)
def test_an_operator_judges(path, op, value, expected):
    tree = leaf(path, op, value)
    assert check(tree) == []
    assert matches(tree, EVENT) is expected


NO, YES = leaf("/a", "eq", 2), leaf("/a", "eq", 1)


@pytest.mark.parametrize(
    ("tree", "place", "code"),
    [
        (None, "", "invalid"),
        (True, "", "invalid"),
        ("all", "", "invalid"),
        ([YES], "", "invalid"),
        ({}, "", "invalid"),
        ({"and": [YES]}, "", "invalid"),
        ({"all": []}, "/all", "invalid"),
        ({"any": []}, "/any", "invalid"),
        ({"all": YES}, "/all", "invalid"),
        ({"any": "x"}, "/any", "invalid"),
        ({"any": None}, "/any", "invalid"),
        ({"not": [YES]}, "/not", "invalid"),
        ({"not": None}, "/not", "invalid"),
        ({"all": [YES, 1]}, "/all/1", "invalid"),
        ({"all": [YES], "any": [YES]}, "/any", "unknown_field"),
        ({"not": YES, "op": "eq"}, "/op", "unknown_field"),
        ({"not": YES, "a/b~": 1}, "/a~1b~0", "unknown_field"),
        ({**YES, "values": 1}, "/values", "unknown_field"),
        ({"op": "eq", "value": 1}, "/path", "required"),
        ({"path": "/a", "value": 1}, "/op", "required"),
        ({"path": "/a", "op": "eq"}, "/value", "required"),
        ({"path": "/a", "op": "in"}, "/value", "required"),
        ({"any": [YES, {"not": {"path": "/a", "op": "ne"}}]}, "/any/1/not/value", "required"),
        (leaf(op="equals"), "/op", "unknown_operator"),
        (leaf(op="EQ"), "/op", "unknown_operator"),
        (leaf(op=""), "/op", "unknown_operator"),
        (leaf(op=None), "/op", "unknown_operator"),
        (leaf(op=["eq"]), "/op", "unknown_operator"),
        (leaf("a"), "/path", "invalid_pointer"),
        (leaf("$.a"), "/path", "invalid_pointer"),
        (leaf("#/a"), "/path", "invalid_pointer"),
        (leaf("/a~"), "/path", "invalid_pointer"),
        (leaf("/a~2"), "/path", "invalid_pointer"),
        (leaf("/~/a"), "/path", "invalid_pointer"),
        (leaf("\n/a"), "/path", "invalid_pointer"),
        (leaf(None), "/path", "invalid_pointer"),
        (leaf(["a"]), "/path", "invalid_pointer"),
        (leaf(op="exists", value=1), "/value", "invalid"),
        (leaf(op="exists", value=None), "/value", "invalid"),
        (leaf(op="in", value="abc"), "/value", "invalid"),
        (leaf(op="in", value={}), "/value", "invalid"),
        (leaf(op="in", value=[0] * (MAX_CHOICES + 1)), "/value", "invalid"),
        (leaf(op="contains", value=["x"]), "/value", "invalid"),
        (leaf(op="contains", value={}), "/value", "invalid"),
        (leaf(op="starts_with", value=1), "/value", "invalid"),
        (leaf(op="ends_with", value=None), "/value", "invalid"),
        (nested(10, YES), "/not" * 10, "too_deep"),
        ({"all": [YES, nested(9, YES)]}, "/all/1" + "/not" * 9, "too_deep"),
        ({"all": [YES] * 101}, "", "too_many"),
        ({"any": [{"all": [YES] * 51}, {"not": {"any": [YES] * 50}}]}, "", "too_many"),
    ],
)
def test_a_faulty_tree_is_refused_at_the_place_of_its_fault(tree, place, code):
    assert [(fault.pointer, fault.code) for fault in check(tree)] == [(place, code)]


@pytest.mark.parametrize(
    "tree",
    [
        YES,
        leaf("", "eq", {}),
        leaf("/"),
        leaf("/a//~0~1/\n/é"),
        leaf(value=None),
        {"path": "/a", "op": "exists"},
        leaf(op="in", value=[0] * MAX_CHOICES),
        leaf(op="contains", value=None),
        leaf(op="gt", value="2026-01-01T00:00:00Z"),
        leaf("/" + "a" * 100_000),
        leaf("/a" * 100_000),
        nested(9, YES),
        {"all": [YES] * 100},
        {"any": [{"all": [YES] * 50}, {"not": {"any": [YES] * 50}}]},
    ],
)
def test_a_sound_tree_is_accepted(tree):
    assert check(tree) == []
    assert matches(tree, EVENT) in (True, False)


def test_all_faults_are_told_in_order_but_only_so_many():
    tree = {"all": [{"path": "a", "op": "is", "x": 1}, {"not": {}}]}
    assert [fault.pointer for fault in check(tree)] == ["/all/0/x", "/all/0/path", "/all/0/op", "/all/1/not"]
    assert len(check({"all": [{"any": []}] * 100_000})) == MAX_FAULTS


def test_depth_and_digits_beyond_pythons_own_limits_do_no_harm():
    tree = leaf("", "eq", deep_list(50_000))
    assert check(tree) == []
    assert matches(tree, deep_list(50_000))
    assert not matches(tree, deep_list(50_001))
    assert explain(tree, deep_list(50_001)) == "The whole document is an array, but must be the given array."
    assert [fault.code for fault in check(nested(50_000, YES))] == ["too_deep"]
    assert explain(leaf("/n", "lt", 5), {"n": 10**5000}) == "`/n` is a huge number, but must be less than 5."
    assert (
        explain(leaf("/n", "gt", 10**5000), {"n": "1"})
        == '`/n` is the string "1", but must be greater than a huge number.'
    )


REST = "; no other alternative of the condition holds either."


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (YES, None),
        (NO, "`/a` is 1, but must be 2."),
        (leaf("/a", "ne", 1), "`/a` is 1, but must be other than 1."),
        (leaf("/a", "gt", 100), "`/a` is 1, but must be greater than 100."),
        (leaf("/a", "gte", 100.5), "`/a` is 1, but must be at least 100.5."),
        (leaf("/s", "lt", 5), '`/s` is the string "7", but must be less than 5.'),
        (leaf("/a", "lte", "5"), '`/a` is the number 1, but must be at most "5".'),
        (leaf("/s", "in", ["8", None]), '`/s` is "7", but must be one of "8", null.'),
        (leaf("/a", "in", []), "`/a` is 1, but must be one of an empty list."),
        (
            leaf("/a", "in", list(range(10, 18))),
            "`/a` is 1, but must be one of 10, 11, 12, 13, 14 or 3 more.",
        ),
        (leaf("/l", "contains", "é"), '`/l` is an array, but must contain "é".'),
        (leaf("/s", "starts_with", "x"), '`/s` is "7", but must start with "x".'),
        (leaf("/s", "ends_with", "x"), '`/s` is "7", but must end with "x".'),
        (leaf("/long", "eq", {}), f'`/long` is "{"x" * 60}…", but must be an empty object.'),
        (leaf("/b", "eq", True), "`/b` is missing, but must be true."),
        ({"path": "/b", "op": "exists"}, "`/b` is missing, but must be present."),
        (leaf("/a", "exists", value=False), "`/a` is 1, but must be absent."),
        ({"not": {"path": "/a", "op": "exists"}}, "`/a` is 1, but must not be present."),
        ({"not": YES}, "`/a` is 1, but must not be 1."),
        ({"not": {"not": NO}}, "`/a` is 1, but must be 2."),
        ({"all": [YES, NO, leaf("/b")]}, "`/a` is 1, but must be 2."),
        ({"any": [NO]}, "`/a` is 1, but must be 2."),
        ({"any": [{"all": [YES, NO]}, leaf("/b")]}, "`/a` is 1, but must be 2" + REST),
        ({"all": [{"any": [NO, YES]}, {"any": [leaf("/b"), NO]}]}, "`/b` is missing, but must be 1" + REST),
        ({"not": {"any": [NO, YES]}}, "`/a` is 1, but must not be 1."),
        ({"not": {"all": [YES, leaf("/s", "eq", "7")]}}, "`/a` is 1, but must not be 1" + REST),
        ({"not": {"all": [{"not": NO}]}}, "`/a` is 1, but must be 2."),
        (leaf("", "eq", 1), "The whole document is an object, but must be 1."),
    ],
)
def test_an_explanation_names_the_first_leaf_that_decided(tree, sentence):
    assert check(tree) == []
    assert explain(tree, {"a": 1, "s": "7", "l": [1], "long": "x" * 100}) == sentence
