"""Chat templates render as in transformers; an endless or huge template is refused."""

# ruff: noqa: E501
from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from scrubjay.memory.context.foreign.costs import FILTERS
from scrubjay.memory.context.foreign.meter import TemplateLimitError
from scrubjay.memory.context.foreign.rendering import MAX_NODES, MAX_TEMPLATE, render_chat

pytestmark = pytest.mark.requires("transformers")

TOKENIZER = SimpleNamespace(special_tokens_map={"bos_token": "<s>", "eos_token": "</s>"})
MESSAGES = [
    {"role": "system", "content": "Be  kind & brief.\n"},
    {"role": "user", "content": "<b>Où</b> est-ce?\tHier\nou aujourd'hui?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}],
    },
]
TOOLS: Any = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["a"]}}}
]
LOOP = "{% for m in messages %}"
TEXT = "messages[1].content"


def render_with_transformers(template: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        [MESSAGES], TOOLS, chat_template=template, add_generation_prompt=True, **TOKENIZER.special_tokens_map
    )
    return texts[0]


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ eos_token }}{{ nothing }}{{ add_generation_prompt }}{{ documents }}{{ tools }}",
        LOOP + "{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ m }}{% endfor %}",
        LOOP + "{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        LOOP + "{% if loop.first %}{% continue %}{% endif %}{{ m['role'] }}{% endfor %}",
        "{% for m in messages if m.role != 'system' and 'content' in m %}{{ m.role }}{% else %}-{% endfor %}",
        "{% for m in [] %}{% else %}none{% endfor %}{% for a, b in messages[0].items() %}{{ a }}{% endfor %}",
        "{% for m in [[1, [2]], [3]] recursive %}{{ loop(m) if m is iterable else m }},{% endfor %}",
        LOOP
        + "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.nextitem.role if not loop.last }}{% endfor %}",
        "{% set ns = namespace(n=0, x=[]) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro f(a, b=2) %}[{{ a }}{{ b }}{{ varargs }}{{ caller() if caller }}]{% endmacro %}{{ f(1) }}{{ f(1, 3, 4) }}{% call f(5) %}inner{% endcall %}",
        "{% set text %} a {{ messages[0].role }}{% endset %}{{ text | trim }}{% filter upper %}a{{ 1 }}{% endfilter %}",
        "{% block one %}b{% endblock %}{{ self.one() }}{% with a = 1 %}{{ a }}{% endwith %}{% raw %}{{{% endraw %}",
        "{% generation %}{% set a = 1 %}g{{ a }}{% endgeneration %}{{ a }}",
        "{% autoescape true %}{{ messages[1].content }}{{ '<' ~ messages[0].role }}{% endautoescape %}",
        "{{ messages[1:] }}{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ (1, 'a') }}{{ {'a': [1]} }}{{ [1, 2] }}",
        "{{ 1 + 2 * 3 - 4 / 2 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 3 }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ -1 }}{{ +2 }}",
        "{{ 1 < 2 <= 2 }}{{ 1 in [1] }}{{ 'a' not in 'bc' }}{{ 'role' in messages[0] }}{{ [1] == [1] }}{{ 1 != 2 }}",
        "{{ 'a' ~ 1 ~ none }}{{ '%s-%d' % ('a', 1) }}{{ '{} {x}'.format('a', x=1) }}{{ '%s' | format('a') }}",
        "{{ "
        + TEXT
        + ".split('\\n')[-1].lstrip() }}{{ "
        + TEXT
        + ".replace('o', '0') }}{{ "
        + TEXT
        + ".find('e') }}",
        "{{ "
        + TEXT
        + ".startswith('<') }}{{ "
        + TEXT
        + ".rsplit(' ', 1) }}{{ ' '.join(['a', 'b']) }}{{ 'a'.center(5) }}",
        "{{ messages[0].get('role') }}{{ messages[0].get('x', 1) }}{{ messages[0].keys() | list }}{{ dict(a=1) }}",
        "{{ [3, 1] | sort }}{{ [1, 1] | unique | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1, 2] | sum }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq', 'user') | list }}",
        "{{ messages | rejectattr('tool_calls', 'defined') | map('length') | list }}{{ ['a'] | map('upper') | first }}",
        "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ tools[0].function.name | tojson }}{{ 'é' | tojson }}",
        "{{ (messages | length) is odd }}{{ x is defined }}{{ x is none }}{{ 'a' is string }}{{ messages is mapping }}",
        "{{ x | default('d') }}{{ '3' | int + 1 }}{{ 2.55 | round(1) }}{{ 'ab' | indent(2, true) }}{{ -1 | abs }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}",
        "{{ range(3) | list }}{% for n in range(2, 0, -1) %}{{ n }}{% endfor %}{{ strftime_now('%H') | length }}",
        "{{ '<' | e ~ '>' }}{{ ('<' | safe) + '>' }}{{ 'a b' | title | capitalize | upper | lower | wordcount }}",
        "{{ ['a', 'b'] | last }}{{ 'ab' | reverse }}{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2] | min }}{{ [1, 2] | max }}",
        "a   \n   {% if true %}\n  b\n{% endif %}\n{%- set x = 1 -%}  c\n{# comment #}\nd\n",
    ],
)
def test_a_template_renders_as_in_transformers(template):
    assert render_chat(TOKENIZER, template, MESSAGES, TOOLS, True) == render_with_transformers(template)


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"random"}))
def test_every_filter_works_on_a_text_or_a_list(name):
    arguments = {"attr": "('x')", "batch": "(2)", "slice": "(2)", "groupby": "('role')", "format": "(1)"}
    arguments |= {
        "map": "('string')",
        "replace": "('a', 'b')",
        "selectattr": "('role')",
        "rejectattr": "('role')",
    }
    lazy = (
        "batch",
        "items",
        "map",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "unique",
    )
    values = ["'a%s'", "1.5", "{'a': 1}", "messages", "['a']", "[1, 2]"]
    count = 0
    for value in values:
        template = f"{{{{ {value} | {name}{arguments.get(name, '')}{' | list' if name in lazy else ''} }}}}"
        try:
            expectation = render_with_transformers(template)
        except Exception:  # noqa: BLE001, S112  the filter does not take this type
            continue
        assert render_chat(TOKENIZER, template, MESSAGES, TOOLS, True) == expectation
        count += 1
    assert count


HUGE = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops without a body": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 9 }}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "map": "{% for a in range(9999) %}{{ range(9999) | map('string') | list | length }}{% endfor %}",
    "filters without a loop": "{{ range(99999) | map('string') | map('string') | map('string') | list }}" * 2,
    "times": "{{ ('a' * 10**11) | length }}",
    "list times": "{{ ([1] * 10**11) | length }}",
    "plus": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "concat": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "shared": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "shared JSON": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x | tojson | length }}",
    "shared comparison": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "shared key": "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
    "{{ {}[ns.x] }}",
    "shared namespaces": "{% set ns = namespace(x=namespace()) %}{% for i in range(60) %}"
    "{% set a = namespace(p=ns.x, q=ns.x) %}{% set ns.x = a %}{% endfor %}{{ ns.x }}",
    "itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns ~ '' }}",
    "deep": "{% set ns = namespace(x=[]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "join": "{{ (range(99999) | join('a' * 99999)) | length }}",
    "join method": "{{ ('a' * 99999).join('a' * 9999) | length }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) | length }}",
    "replace method": "{{ ('a' * 99999).replace('', 'b' * 99999) | length }}",
    "center": "{{ 'a' | center(10**10) | length }}",
    "ljust": "{{ 'a'.ljust(10**10) | length }}",
    "expandtabs": "{{ ('\\t' * 99999).expandtabs(10**6) | length }}",
    "indent": "{{ ('a\\n' * 99999) | indent(10**6) | length }}",
    "indent by a text": "{{ ('a\\n' * 9999) | indent('a' * 9999) | length }}",
    "JSON indent": "{{ [1] | tojson(indent=10**10) | length }}",
    "JSON separators": "{{ [range(9999) | list] | tojson(separators=['a' * 99999, ':']) | length }}",
    "percent width": "{{ '%9999999999d' % 1 }}",
    "percent width of a value": "{{ '%*d' % (10**9, 1) }}",
    "format width": "{{ '{:9999999999}'.format(1) }}",
    "format width of a value": "{{ '{:{}}'.format(1, 10**9) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format attribute": "{{ ('' | attr('format')) and ('{:9999999999}' | attr('format'))(1) }}",
    "date": "{{ strftime_now('%Y' * 1000000) }}",
    "date width": "{{ strftime_now('%9999999Y') }}",
    "power": "{{ (7**9999999) % 3 }}",
    "powers": "{% set ns = namespace(x=7) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "round": "{{ 1 | round(-1000000000) }}",
    "batch": "{{ [1] | batch(10**9, 'a') | list | length }}",
    "wordwrap": "{{ ('a ' * 99999) | wordwrap(1) | length }}",
    "urlize": "{{ ('http://a.b ' * 99999) | urlize | length }}",
    "sum of lists": "{{ ([[1] * 999] * 9999) | sum(start=[]) | length }}",
    "sort": "{% for a in range(9999) %}{{ range(9999) | sort | length }}{% endfor %}",
    "characters": "{{ ('a' * 9999999) | list | length }}",
    "split": "{{ ('a ' * 4999999).split() | length }}",
    "rfind": "{{ ('a' * 999999).rfind('b' + 'a' * 499999) }}",
    "strip": "{{ ('a' * 99999).strip('b' * 99999 + 'a') | length }}",
    "in": "{% for a in range(9999) %}{{ 'b' in 'a' * 999999 }}{% endfor %}",
    "in a test": "{% set x = 'a' * 999999 %}{% for a in range(9999) %}{{ 'b' is in(x) }}{% endfor %}",
    "slices": "{% set x = 'a' * 999999 %}{% set ns = namespace(x=[]) %}{% for a in range(9999) %}"
    "{% set ns.x = ns.x + [x[1:]] %}{% endfor %}",
    "output": "{% set x = 'a' * 99999 %}{% for a in range(9999) %}{{ x }}{% endfor %}",
    "constant output": "{% for a in range(9999) %}" + "a" * 50_000 + "{% endfor %}",
    "block": "{% set x %}{% for a in range(9999) %}" + "a" * 50_000 + "{% endfor %}{% endset %}",
    "output within the steps": "{% for a in range(999) %}" + "a" * 999 + "{% endfor %}",
    "compile-time constant": "{% autoescape 'a' | center(10**10) %}{% endautoescape %}{{ 'a' | center(10**10) }}",
    "length": "a" * (MAX_TEMPLATE + 1),
    "nodes": "{{a}}" * MAX_NODES,
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", HUGE)
def test_an_endless_or_huge_template_is_refused(name):
    with pytest.raises(TemplateLimitError, match=r"^the chat template is refused: .*chat_template="):
        render_chat(TOKENIZER, HUGE[name], MESSAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["concat", "characters", "split", "slices", "output", "block", "shared JSON", "map"]
)
def test_a_refused_template_takes_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimitError):
            render_chat(TOKENIZER, HUGE[name], MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ [].append(1) }}", "unsafe|may not call"),
        ("{{ (1).to_bytes(10**9) }}", "may not call the method 'to_bytes'"),
        ("{{ 'a'.translate({}) }}", "may not call the method 'translate'"),
        ("{{ bos_token.__class__.x }}", "unsafe"),
        ("{{ namespace(_x=1) }}", "may not set the attribute '_x'"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "may not set|unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% if messages %}{% endfor %}", "unknown tag 'endfor'"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ messages[0].content.x.y }}", "no attribute 'x'"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "nested too deeply, or calls itself"),
        (f"{{{{ {'(' * 3000}1{')' * 3000} }}}}", "nested too deeply, or calls itself"),
    ],
)
def test_other_operations_are_refused(template, reason):
    with pytest.raises(ValueError, match=rf"^the chat template fails: .*({reason}).*chat_template="):
        render_chat(TOKENIZER, template, MESSAGES)


@pytest.mark.slow
def test_the_steps_grow_with_the_conversation():
    """A template may compare each message with all others."""
    template = (
        LOOP
        + "{% for n in messages %}{% if m.role == n.role %}{% endif %}{% endfor %}{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "user", "content": str(n)} for n in range(600)]
    assert render_chat(TOKENIZER, template, messages) == "".join(str(n) for n in range(600))


def test_threads_count_their_own_steps():
    from concurrent.futures import ThreadPoolExecutor

    template = LOOP + "{% for n in range(5000) %}{% endfor %}{{ m.role }}{% endfor %}"
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: render_chat(TOKENIZER, template, MESSAGES), range(40)))
    assert texts == ["systemuserassistant"] * 40
