"""A chat template that has no end, or makes too much, is an error; others are rendered as they are."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from striate.data.chat_template import template_limits
from striate.data.chat_template.rendering import Renderer
from striate.data.chat_template.template_limits import bounded_time, check_template
from striate.data.samples import Message, Sample
from striate.errors import ModelError

ENDLESS = "".join(f"{{% for {name} in range(99999) %}}" for name in "ijk") + "{% endfor %}" * 3
TOO_MUCH = {
    "a product": "{{ 'a' * 10**10 }}",
    "doubling": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a wide field": "{{ '%1000000000d' % 1 }}",
    "long": "{% for i in range(10001) %}{{ 'a' * 1000 }}{% endfor %}",
    "where the model speaks": "{% if add_generation_prompt %}{{ 'a' * 10**10 }}{% endif %}",
    "after an answer": "{% if messages | length == 3 %}{{ 'a' * 10**10 }}{% endif %}",
}
ORDINARY = {
    "fine": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}",
    "date": "{{ strftime_now('%d %b') }}{{ bos_token }}",
    "raises": "{{ raise_exception('only text') }}",
    "broken": "{% for",
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 1)


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_template_that_makes_too_much_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"chat template takes more than .* for three short turns"):
        check_template(TOO_MUCH[kind])


def test_a_template_without_end_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        check_template(ENDLESS)
    assert str(caught.value) == (
        "the model's chat template takes more than 1 s for three short turns\n"
        "  allowed: a template that renders a conversation at once: it is a program, and this one may have no end\n"
        "  next:    get the template again, or set processor.chat_template to another and save the processor"
    )


@pytest.mark.parametrize("kind", ORDINARY)
def test_others_are_left_to_whoever_renders(kind: str) -> None:
    check_template(ORDINARY[kind])


class Processor:
    """A processor that renders with Jinja alone."""

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self.tokenizer = SimpleNamespace(
            eos_token="</s>", bos_token="<s>", added_tokens_decoder={}, all_special_tokens=["</s>"]
        )

    def apply_chat_template(self, messages: Any, chat_template: str, **settings: Any) -> str:
        return ImmutableSandboxedEnvironment().from_string(chat_template).render(messages=messages, **settings)


def test_a_template_without_end_for_some_conversations_is_stopped() -> None:
    renderer = Renderer(Processor("{% if 'now' in messages[0].content[0].text %}" + ENDLESS + "{% endif %}fine"))
    assert renderer.prompt(Sample("1", (Message("user", "then"),))) == "fine"
    begin = time.monotonic()
    with pytest.raises(ModelError, match="chat template takes more than 1 s for one conversation"):
        renderer.prompt(Sample("1", (Message("user", "now"),)))
    assert time.monotonic() - begin < 20


def test_time_is_bounded_in_every_thread_and_what_follows_is_left_alone() -> None:
    said: list[str] = []

    def spin() -> None:
        try:
            with bounded_time():
                while True:
                    pass
        except ModelError as error:
            said.append(error.given)

    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    with bounded_time():
        pass
    for thread in threads:
        thread.join()
    time.sleep(0.2)
    assert said == ["the model's chat template takes more than 1 s for one conversation"] * 2


def test_other_errors_come_through() -> None:
    with pytest.raises(KeyError), bounded_time():
        {}["x"]
    assert Path(template_limits.__file__).with_name("trial_render.py").is_file()
