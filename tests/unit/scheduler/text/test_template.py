"""Templates do what chat templates do, and cannot escape or run away."""

import time
from typing import Any

import pytest

from scheduler.domain.errors import InvalidInput
from scheduler.text.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Ünï <b>"}, {"role": "assistant", "content": "ok"}]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}).render({"messages": MESSAGES, **variables})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for m in messages %}\n{{ loop.index }}{{ m.role }}\n{% endfor %}",
            "1user\n2assistant\n",
        ),
        (
            "{% for m in messages %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
            "user, assistant",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
            "{% endfor %}",
            "assistant",
        ),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Ünï <b>"}'),
        ("{{ messages[1] | tojson(indent=2) }}", '{\n  "role": "assistant",\n  "content": "ok"\n}'),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages[0].content.replace('<b>', '!').strip() ~ eos_token }}", "Ünï !</s>"),
        ("{{ 'a b'.split(' ')[-1] }}{{ messages[-1]['content'] | trim | upper }}", "bOK"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') * 2 }}", "<y><y>"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "ok"),
        (
            "{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}",
            "role=assistant;content=ok;",
        ),
        ("{{ undefined_name is defined }}{{ none }}{{ undefined_name }}", "FalseNone"),
        ("{{ messages[::-1][0].role }}{{ range(3) | list }}", "assistant[0, 1, 2]"),
        ("{{ dict(a=1) | tojson }}{{ ', '.join(['x', 'y']) }}", '{"a": 1}x, y'),
    ],
)
def test_templates_render_as_chat_templates_do(source: str, expected: str) -> None:
    assert render(source) == expected


def test_today_can_be_written() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ self._TemplateReference__context.environment.globals }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages|map(attribute='__class__.__mro__')|list|first|first|upper|int(x=1) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({}) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ config.items() }}{{ request.application }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidInput, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for a in [messages] recursive %}{{ loop(a) }}{% endfor %}",
        "{{ range(999999) | list }}",
        "{{ range(9999999999) }}",
        "{{ 2 ** 99999999 }}",
        "{% set ns = namespace(x=9999) %}{% for i in range(60) %}"
        "{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ 'a' * 999999999 }}",
        "{{ 999999999 * 'a' }}",
        "{{ [0] * 999999999 }}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
        "{% for i in range(99999) %}" + "a" * 5000 + "{% endfor %}",
        "{{ range(99999) | join('x' * 99999) }}",
        "{{ ('x' * 99999).join(range(99999)) }}",
        "{{ ('a' * 9999).replace('a', 'b' * 99999) }}",
        "{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a' | indent(999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{" + "(" * 30_000,
        "{% if 1 %}" * 3_000,
    ],
)
def test_a_template_cannot_run_away(source: str) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidInput, match="chat template"):
        render(source)
    assert time.thread_time() - began < 4


def test_a_long_prompt_stops_at_the_output_limit() -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        render("{% for i in range(40) %}{{ big }}{% endfor %}", big="x" * 1_000_000)


def test_what_the_template_complains_about_reaches_the_caller() -> None:
    with pytest.raises(InvalidInput, match="No system role here") as caught:
        render("{{ raise_exception('No system\n role here.') }}")
    assert caught.value.param == "messages"


def test_failures_of_careless_templates_are_the_callers_to_see() -> None:
    for source in ("{{ 1 / 0 }}", "{{ messages[0].a.b }}", "{{ 'a' + 1 }}", "{{ messages[9].x }}"):
        with pytest.raises(InvalidInput, match="cannot render"):
            render(source)


def test_a_template_over_64_kib_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 65536 bytes"):
        ChatTemplate("ü" * 33_000, {})
