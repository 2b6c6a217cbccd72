"""Promises about templates: what they print, that they cannot be made to burn time or memory, that nothing leaks in."""

import json
import time
import tracemalloc
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from liquid.builtin.expressions._tokenize import _keywords

from app.core import template_engine, templates
from app.core.template_filters import FILTERS
from app.core.templates import Template, TemplateFailed, TemplateInvalid, compile_template

EVENT: dict[str, Any] = {
    "type": "order.paid",
    "data": {
        "text": 'she said "hi", {{ 7 | times: 7 }}',
        "items": [{"sku": "A1", "price": 19.9}, {"sku": "B2", "price": 5}],
        "codes": {"404": "not found"},
        "a-b": "dash",
        "paid": True,
        "note": None,
        "empty": "",
        "huge": 10**400,
        "at": "2026-03-02T23:30:00+01:00",
    },
}


def render(source: str, variables: dict[str, Any] = EVENT) -> str:
    return compile_template(source).render(variables)


def evaluate(source: str, variables: dict[str, Any] = EVENT) -> Any:
    return compile_template(source).evaluate(variables)


def failure(source: str, variables: dict[str, Any] = EVENT) -> TemplateFailed:
    with pytest.raises(TemplateFailed) as caught:
        render(source, variables)
    return caught.value


def refusal(source: str) -> TemplateInvalid:
    with pytest.raises(TemplateInvalid) as caught:
        compile_template(source)
    return caught.value


# --- What is printed. ---


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("{{ data.items[0].sku }}", "A1"),
        ("{{ data.items.1.sku }}", "B2"),
        ("{{ data.items.size }}{{ data.items.first.sku }}", "2A1"),
        ("{{ data.codes.404 }}", "not found"),
        ("{{ data.a-b }}", "dash"),
        ("{{ data.paid }}", "true"),
        ("[{{ data.note }}]", "[]"),
        ("{{ data.items }}", '[{"sku":"A1","price":19.9},{"sku":"B2","price":5}]'),
        ("{{ data.codes }}", '{"404":"not found"}'),
        ("{{ data.paid | append: '!' }}", "true!"),
        ("{{ data.items | join: '; ' }}", '{"sku":"A1","price":19.9}; {"sku":"B2","price":5}'),
        ("{{ data.items | map: 'sku' | join: '+' }}", "A1+B2"),
        ("{{ data.items | map: 'price' | sum }}", "24.9"),
        ("{{ 'a,b,a' | split: ',' | uniq | json }}", '["a","b"]'),
        ("{{ data.items | uniq: 'sku' | size }}", "2"),
        ("{{ 'aXbX' | replace: 'X', '-' }}", "a-b-"),
        ("{{ data.codes | slice: 0, 4 }}", '{"40'),
        ("{{ data.items[0].price | times: 3 }}", "59.7"),
        ("{{ data.at | date: '%d.%m.%Y %H:%M %Z' }}", "02.03.2026 23:30 UTC+01:00"),
        ("{{ '2026-03-02' | date: '%j %Z' }}", "061 UTC"),
        ("{{ 0 | date: '%Y-%m-%d %H:%M' }}", "1970-01-01 00:00"),
        ("{% for i in data.items reversed %}{{ forloop.index }}{{ i.sku }} {% endfor %}", "1B2 2A1 "),
        ("{% for p in data.codes %}{{ p[0] }}={{ p[1] }}{% endfor %}", "404=not found"),
        ("{% for i in (1..9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "12"),
        ("{% for i in data.empty %}x{% else %}none{% endfor %}", "none"),
        ("{% case data.paid %}{% when true %}yes{% else %}no{% endcase %}", "yes"),
        ("{% unless data.note %}no{% endunless %}", "no"),
        ("{% assign a = data.items | size %}{% capture b %}<{{ a }}>{% endcapture %}{{ b }}", "<2>"),
        (
            "{% raw %}{{ as it is }}{% endraw %}{% comment %}{{ x | y }}{% endcomment %}{% # z %}",
            "{{ as it is }}",
        ),
        ("{{ data.huge }}", str(10**400)),
        ("{{ partial | default: 'a name like others' }}", "a name like others"),
    ],
)
def test_liquid_prints_what_customers_mean(source, printed):
    assert render(source) == printed


@pytest.mark.parametrize("word", sorted(_keywords))
def test_members_may_be_named_like_words_of_liquid(word):
    variables = {"data": {word: {"x": [1, 2]}}, "n": 2, word: "top"}
    assert render(f"{{{{ data.{word}.x.size }}}}", variables) == "2"
    assert (
        render(f"{{% for i in data.{word}.x limit: data.{word}.x.0 %}}{{{{ i }}}}{{% endfor %}}", variables)
        == "1"
    )
    assert render(f"{{{{ 'a.{word}' | append: \"b.{word}\" }}}}") == f"a.{word}b.{word}"


def test_ranges_end_where_their_names_say():
    assert evaluate("{{ (1..limits) }}", {"limits": 3}) == [1, 2, 3]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(value=json_values)
def test_the_json_filter_makes_valid_json_of_any_value(value):
    assert json.loads(render('{"text": {{ data.text | json }}}', {"data": {"text": value}})) == {
        "text": value
    }


@given(value=json_values)
@example(value="19.90")
@example(value="1e5")
@example(value="None")
@example(value="{{ 7 | times: 7 }}")
def test_a_template_that_is_one_expression_keeps_the_type_of_its_value(value):
    found = evaluate("{{ a.b }}", {"a": {"b": value}})
    assert found == value
    assert type(found) is type(value)


def test_a_template_with_anything_beside_the_expression_gives_text():
    assert evaluate(" {{ data.paid }}") == " true"
    assert evaluate("{{ data.paid }}{{ data.paid }}") == "truetrue"
    assert evaluate("") == ""


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ data.items | size }}", 2),
        ("{{ (1..3) }}", [1, 2, 3]),
        ("{{ data.codes | first }}", ["404", "not found"]),
        ("{{ empty }}", ""),
        ("{{ data.nothing | default: 3 }}", 3),
        ("{{ data.paid | default: 1, allow_false: true }}", True),
    ],
)
def test_results_of_expressions_are_plain_json_values(source, value):
    assert evaluate(source) == value
    assert type(evaluate(source)) is type(value)


def test_a_numeral_that_no_number_can_hold_is_no_value():
    with pytest.raises(TemplateFailed, match=r"A value is of a kind"):
        evaluate("{{ " + "9" * 400 + ".0 }}")


def test_values_are_never_rendered_again():
    assert render("{{ data.text }}") == EVENT["data"]["text"]
    assert evaluate("{{ data.text }}") == EVENT["data"]["text"]


# --- What is missing, and what is not there on purpose. ---


@pytest.mark.parametrize(
    "source", ["{% if data.x.y %}1{% else %}0{% endif %}", "{% if x == nil %}0{% endif %}"]
)
def test_a_missing_variable_is_false_in_a_condition(source):
    assert render(source) == "0"


@pytest.mark.parametrize(
    "tag",
    [
        "{{ data.x }}",
        "{{ data.x | upcase }}",
        "{{ 'a' | append: data.x }}",
        "{% for i in data.x %}{% endfor %}",
    ],
)
def test_a_missing_variable_is_an_error_elsewhere_that_names_it_and_its_line(tag):
    error = failure(f"first\nsecond {tag}")
    assert error.line == 2
    assert str(error).startswith("Line 2: `data.x` is missing")


def test_one_expression_that_is_missing_is_an_error_too():
    with pytest.raises(TemplateFailed, match=r"`data\.x` is missing"):
        evaluate("{{ data.x }}")


@pytest.mark.parametrize("name", ["now", "today", "increment", "__class__", "self", "env", "template"])
def test_templates_see_no_clock_and_nothing_of_python(name):
    assert f"`{name}` is missing" in str(failure(f"{{{{ {name} }}}}"))


@pytest.mark.parametrize("path", ["__class__", "items.append", "text.format", "text.__len__", "paid.real"])
def test_attributes_of_python_objects_are_out_of_reach(path):
    assert "is missing" in str(failure(f"{{{{ data.{path} }}}}"))


@pytest.mark.parametrize("word", ["now", "today", "10:00", "yesterday", "12"])
def test_no_date_is_relative_to_the_clock(word):
    assert "`date` cannot be applied" in str(failure(f"{{{{ '{word}' | date: '%Y' }}}}"))


@pytest.mark.parametrize("directive", ["%s", "%c", "%x", "%X", "%999999999Y", "%", "%Q"])
def test_no_date_depends_on_the_machine(directive):
    assert "`date` cannot be applied" in str(failure(f"{{{{ 0 | date: '{directive}' }}}}"))


@pytest.mark.parametrize(
    "tag",
    ["include 'a'", "render 'a'", "cycle 1, 2", "increment a", "tablerow a in b", "liquid echo 1", "echo 1"],
)
def test_tags_that_load_files_or_have_no_use_are_unknown(tag):
    assert "Unexpected tag" in str(refusal(f"{{% {tag} %}}"))


# --- What is refused, with its line. ---


@pytest.mark.parametrize(
    ("source", "line", "sentence"),
    [
        ("\n{{ a | shout }}", 2, "There is no filter `shout`"),
        ("\n\n{{ a | append }}", 3, "The filter `append` takes 1 arguments"),
        ("{{ a | upcase: 1 }}", 1, "The filter `upcase` takes 0 arguments"),
        ("{{ a | slice: 1, 2, 3 }}", 1, "The filter `slice` takes 1 to 2 arguments"),
        ("{{ a | default: 1, allow_true: true }}", 1, "has no argument `allow_true`"),
        ("{% for a in b %}\n{{ a | shout }}{% endfor %}", 2, "There is no filter `shout`"),
        ("{% if a %}\n", 2, "Expected tag endif"),
        ("\n{{ a", 2, "`{{` is not closed by `}}`"),
        ("\n{% if a", 2, "`{%` is not closed by `%}`"),
        ("\n{% raw %}", 2, "`raw` is not closed by `endraw`"),
        ("{{ }}", 1, "There is nothing between"),
        ("{{ a b }}", 1, ""),
        ("{{ a" + " " * 100 + "}}", 1, "99 blanks in a row"),
        ("{{ a" + "a" * templates.MAX_TAG_LENGTH + "}}", 1, "A tag has up to 1024 characters"),
        ("{{ a" + " | abs" * template_engine.MAX_PARTS + " }}", 1, "A tag has up to 100 values"),
        ("a" * (templates.MAX_SOURCE_LENGTH + 1), None, "A template has up to 32768 characters"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(source, line, sentence):
    error = refusal(source)
    assert error.line == line
    assert sentence in error.detail


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("{% if data.text < 1 %}{% endif %}", "Values of these kinds do not go together."),
        ("{{ data.items | sort }}", "The filter `sort` cannot be applied to an array."),
        ("{{ 1 | divided_by: 0 }}", "The filter `divided_by` cannot be applied to a number with a number."),
        ("{{ data.text | concat: data.note }}", "The filter `concat` cannot be applied to a text with null."),
        (
            "{{ 'YQBi' | base64_decode }}",
            "The filter `base64_decode` cannot be applied to a text.",
        ),  # holds NUL
        ("{{ 'x' | url_decode | base64_decode }}", "The filter `base64_decode` cannot be applied to a text."),
        ("{{ '1e999' | times: 1 }}", "The filter `times` cannot be applied to a text with a number."),
        ("{% break %}", "Unexpected 'break'."),
    ],
)
def test_a_failure_is_a_sentence_with_a_line_and_quotes_no_value(tag, sentence):
    error = failure(f"\n{tag}")
    assert (error.line, error.detail) == (2, sentence)


# --- Bombs. Each fails (or ends) within a second of CPU time and in little memory. ---

FULL = templates.MAX_SOURCE_LENGTH
LOOP, END = "{% for each in (1..9999) %}", "{% endfor %}"


def filled(unit: str, before: str = "", after: str = "") -> str:
    return before + unit * ((FULL - len(before) - len(after)) // len(unit)) + after


def in_loop(unit: str, before: str = "", after: str = "") -> str:
    return filled(unit, before + LOOP, END + after)


LARGE = {
    "big": "x" * 250_000,
    "wide": "é" * 100_000,
    "hay": "a" * 2500,
    "needle": "a" * 624 + "b" + "a" * 624,
    "numbers": list(range(60_000)),
    "texts": [f"s{number}" for number in range(20_000)],
    "left": {"k": [list(range(30_000))]},
    "right": {"k": [list(range(30_000))]},
    "objects": [{"k": list(range(30_000)), "s": "x" * 250_000}],
    "huge": 10**4000,
    "infinite": "inf",
}
ELSIF = "{% elsif " + " or ".join(["1==2"] * 12) + " %}"
WHEN = "{% when " + ",".join(map(str, range(90))) + " %}"
BOMBS = {
    "nested loops": "{% for a in (1..100) %}" * 3 + "x" + END * 3,
    "loops after loops": filled(LOOP + END),
    "loops of nodes": in_loop("{% if true %}{% endif %}"),
    "loops of literals": in_loop("{% if " + " and ".join(["1==1"] * 24) + " %}{% endif %}"),
    "loops of elsif": in_loop(ELSIF)
    .replace(LOOP, LOOP + "{% if false %}")
    .replace(END, "{% endif %}" + END)[:FULL],
    "loops of when": filled(WHEN, LOOP + "{% case 'x' %}", "{% endcase %}" + END),
    "loops of filters": in_loop("{% assign a = ''" + " | abs" * 40 + " %}"),
    "loops of arrays": in_loop("{% assign a = 'b,a' | split: ',' | sort | join %}"),
    "loops of sorting": in_loop("{% assign a = texts | sort %}"),
    "loops of comparisons": in_loop("{% if left == right %}{% endif %}"),
    "loops of searches": in_loop("{% if numbers contains 'z' %}{% endif %}"),
    "loops of slow searches": in_loop("{% if hay contains needle %}{% endif %}"),
    "loops of captures": filled("é", LOOP + "{% capture a %}", "{% endcapture %}" + END),
    "loops of output": in_loop("y"),
    "many names": "".join(f"{{% assign a{number} = 1 %}}" for number in range(1300))
    + LOOP
    + "{% assign b = 1 %}"
    + END,
    "searched range": in_loop("{% if (1..9999) contains 'x' %}{% endif %}"),
    "searched range by name": in_loop("{% if r contains 'x' %}{% endif %}", "{% assign r = (1..9999) %}"),
    "huge range": "{% for a in (1..1000000000000) %}{% endfor %}",
    "huge range reversed": "{% for a in (1..1000000000000) reversed limit: 3 %}{% endfor %}",
    "huge range sorted": "{{ (1..1000000000000) | sort }}",
    "huger range": "{{ (1.." + "9" * 400 + ") | size }}",
    "infinite range": "{% for a in (1..infinite) %}{% endfor %}",
    "squared by replace": "{{ big | replace: 'x', big }}",
    "replaced between": "{{ big | replace: '', big }}",
    "squared by join": "{{ texts | join: big }}",
    "chain of replace": "{{ 'xxxx'" + " | replace: 'x', 'xxxx'" * 40 + " }}",
    "doubled": "{% assign a = 'x' %}" + "{% assign a = a | append: a %}" * 60,
    "array doubled": "{% assign a = objects %}" + "{% assign a = a | concat: a %}" * 60,
    "shared arrays": "{% assign a = objects %}"
    + "{% assign a = a | concat: a %}" * 11
    + "{{ a | map: 'k' | reverse }}",
    "shared texts": "{% assign a = objects %}"
    + "{% assign a = a | concat: a %}" * 11
    + "{{ a | map: 's' | json }}",
    "shared output": "{% assign a = objects %}" + "{% assign a = a | concat: a %}" * 11 + "{{ a }}",
    "chain of concat": "{{ numbers" + " | concat: numbers" * 45 + " | size }}",
    "all alike": "{{ numbers | uniq | size }}{{ numbers | uniq | size }}",
    "giant number": "{% assign a = 10 %}" + "{% assign a = a | times: a %}" * 60,
    "giant numeral": "{{ huge | plus: 1 }}",
    "giant exponent": "{{ '1e999999999,1' | split: ',' | sum }}",
    "giant rounding": "{{ 1.5 | round: 99999999999999999999 }}",
    "giant date": "{{ huge | date: '%Y' }}",
    "grown text": filled("{% assign a = wide | url_encode %}"),
    "all of it as JSON": "{{ numbers | json }}" * 50,
    "chain of sorting": filled("{{ big | split: ''" + " | sort" * 90 + " | size }}"),
    "deep path": "{{ " + "a[" * 45 + "1" + "]" * 45 + " }}",
    "deeper path": "{{ " + "a[" * 330 + "1" + "]" * 330 + " }}",
    "deep blocks": filled("{% if true %}"),
    "deep loops": "{% for a in (1..1) %}" * 29 + END * 29,
    "unclosed raw": filled("{% raw %}"),
    "unclosed doc": filled("{% doc %}"),
    "unclosed output": filled("{{"),
    "unclosed tags": filled("{% a"),
    "unclosed comments": filled("{% comment %}"),
    "blanks": "{{" + " " * (FULL - 4) + "}}",
    "blanks in tags": filled("{% if" + (" " * 98 + "-") * 9 + "%}"),
    "one long word": "{% " + "a" * (FULL - 3),
    "brackets": filled("{{" + "[" * 1000 + "}}"),
    "parentheses": filled("{{" + "(" * 1000 + "}}"),
    "quotes": filled("{{" + '["a" ' * 200 + "}}"),
    "many outputs": filled("{{a}}\n"),
}


def explode(source: str) -> None:
    with suppress(TemplateInvalid, TemplateFailed):
        Template(source).render(LARGE)


@pytest.mark.parametrize("name", BOMBS)
def test_no_template_takes_more_than_a_second(name):
    assert len(BOMBS[name]) <= FULL
    started = time.process_time()
    explode(BOMBS[name])
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", [name for name in BOMBS if "loops" not in name and "searched" not in name])
def test_no_template_takes_much_memory(name):
    tracemalloc.start()
    explode(BOMBS[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 1024**2


@pytest.mark.parametrize(
    "name", [name for name in BOMBS if name.startswith(("loops of", "shared", "chain", "huge"))]
)
def test_work_without_end_fails_and_is_not_cut_short(name):
    with pytest.raises((TemplateInvalid, TemplateFailed)):
        compile_template(BOMBS[name]).render(LARGE)


def test_a_long_list_is_no_bomb():
    lines = [{"sku": f"sku-{number}", "price": number} for number in range(1000)]
    body = "{% if line.price > 3 %}{{ line.sku | upcase }}: {{ line.price }}\n{% endif %}"
    source = "{% for line in lines %}" + body + "{% endfor %}"
    assert render(source, {"lines": lines}).count("\n") == 996


def test_output_and_results_of_filters_end_at_256_kib():
    text = {"a": "x" * 128 * 1024}
    assert len(render("{{ a }}{{ a }}", text)) == 256 * 1024
    assert failure("{{ a }}{{ a }}.", text).detail == "Output stream limit reached."
    assert len(evaluate("{{ a | append: a }}", text)) == 256 * 1024
    assert "more than 256 KiB" in failure("{{ a | append: a | append: 'x' | size }}", text).detail
    assert evaluate("{{ a | plus: 1 }}", {"a": 10**40 - 2}) == 10**40 - 1
    assert "40 digits" in failure("{{ a | plus: 1 }}", {"a": 10**40 - 1}).detail


def test_what_a_template_assigns_ends_at_256_kib():
    text = {"a": "x" * 200 * 1024}
    assert render("{% assign b = a %}{% assign b = a | upcase %}{% assign b = a %}", text) == ""
    assert failure("{% assign b = a %}{% assign c = a %}", text).detail == "Local namespace limit reached."


# --- Anything at all. ---

pieces = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{%",
            "%}",
            "-",
            " ",
            "\n",
            "|",
            ":",
            ",",
            ".",
            "'",
            '"',
            "[",
            "]",
            "(",
            ")",
            "..",
            "==",
        ),
        *(
            "a",
            "b.c",
            "1",
            "2.5",
            "nil",
            "if",
            "endif",
            "for i in a",
            "endfor",
            "assign b = a",
            "case",
            "when",
        ),
        *("raw", "endraw", "comment", "endcomment", "capture x", "endcapture", "{{ a }}", "{{ a | json }}"),
        *("{% if a %}", "{% endif %}", "{% for i in (1..3) %}", "{% endfor %}", "{% else %}", "{% break %}"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(parts=st.lists(pieces | st.text(max_size=3), max_size=25), value=json_values)
def test_whatever_the_source_a_template_is_refused_fails_or_gives_the_same_text_twice(parts, value):
    source, variables = "".join(parts), {"a": value, "b": {"c": value}}
    try:
        template = Template(source)
        template.variables()
        assert template.render(variables) == Template(source).render(variables)
    except (TemplateInvalid, TemplateFailed):
        pass


SAMPLES = [
    None,
    True,
    0,
    -1,
    2.5,
    10**39,
    "",
    "a,b",
    "1e400",
    "nan",
    "-inf",
    "%",
    "&#9;",
    [],
    [1, "a"],
    {},
    {"a": 1},
    [[1]],
]


@pytest.mark.parametrize("name", FILTERS)
def test_whatever_a_filter_is_given_it_gives_json_or_fails(name):
    for count in range(3):
        try:
            template = compile_template(
                f"{{{{ v0 | {name}{':' if count else ''} {', '.join(['v1', 'v2'][:count])} }}}}"
            )
        except TemplateInvalid:
            continue
        for values in product(SAMPLES, repeat=count + 1):
            try:
                value = template.evaluate({f"v{place}": value for place, value in enumerate(values)})
            except TemplateFailed:
                continue
            json.dumps(value, allow_nan=False)


# --- Which variables, and how often they are read. ---


def test_the_variables_of_a_template_are_told_with_their_lines():
    source = (
        "{{ a.b[c.d].e }}{% for i in data.items %}{{ i.x }}{{ forloop.index }}{% endfor %}"
        "{% assign z = q | append: r.s %}\n{{ z }}{{ a[0]['x y'] }}{{ c.d }}"
    )
    assert Template(source).variables() == {
        ("a", "b"): 1,
        ("c", "d"): 1,
        ("data", "items"): 1,
        ("q",): 1,
        ("r", "s"): 1,
        ("a", 0, "x y"): 2,
    }


def test_a_template_is_read_once_and_the_memory_of_templates_is_bounded():
    short, long = "{{ a }}", "{{ a }}" + "x" * 4000
    assert compile_template(short) is compile_template(short)
    assert compile_template(long) is compile_template(long)
    short_cache, long_cache = templates._short_template.cache_info(), templates._long_template.cache_info()
    kept = (short_cache.maxsize or 0) * templates._SHORT + (long_cache.maxsize or 0) * FULL
    assert short_cache.maxsize
    assert long_cache.maxsize
    assert kept <= 1024**2
