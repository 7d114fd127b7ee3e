"""What chat models are fed: thoughts closed, days fixed, templates that cannot be used left out or bounded."""

import sys
from datetime import datetime

import pytest

from amnesia.errors import InputError
from amnesia.live import chat_form
from amnesia.live.chat_form import chat_format
from amnesia.stress.persuasion import persuasion
from support.tiny_text import tiny_tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def tokenizer(request):
    return tiny_tokenizer(bos=request.param)


_TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
_PLAIN = _TURNS + "{% if add_generation_prompt %}[assistant] {% endif %}"


@pytest.mark.parametrize(
    ("template", "fed"),
    [
        (_PLAIN, "[assistant] "),
        # As Qwen3: thinking can be switched off, and then the block is closed by the template.
        (
            _PLAIN + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
            "[assistant] <think>\n\n</think>\n\n",
        ),
        # As DeepSeek V3.1: by another name, and closed without having been opened.
        (_PLAIN + "{% if thinking %}<think>{% else %}</think>{% endif %}", "[assistant] </think>"),
        # As QwQ: always opened.
        (_PLAIN + "<think>\n", "[assistant] <think>\n\n</think>\n\n"),
        # As Magistral: other brackets.
        (_PLAIN + "[THINK]", "[assistant] [THINK]\n\n[/THINK]\n\n"),
        # As the first DeepSeek R1: the model opens the block itself, which shows in how earlier turns are cut.
        ("{% set _ = 'x'.split('</think>') %}" + _PLAIN, "[assistant] <think>\n\n</think>\n\n"),
        # A system message that speaks of the block is not the block.
        ("<think> comes before </think>\n" + _PLAIN + "<think>\n", "[assistant] <think>\n\n</think>\n\n"),
    ],
    ids=["plain", "switched off", "only closed", "opened", "brackets", "opened by the model", "named before"],
)
def test_a_chat_model_is_asked_for_its_answer_not_for_its_thoughts(tokenizer, template, fed):
    tokenizer.chat_template = template
    lines = []
    assert chat_format(tokenizer, lines.append)("Who?\n").endswith(f"[user] Who?\n{fed}")
    assert lines == []


def test_a_template_that_prints_the_day_asks_the_same_on_every_day(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[-1]['content'] }} ->"
    fixed, dated = chat_format(tokenizer), chat_format(tokenizer, today=True)
    assert fixed("Who?") == "26 Jul 2024 Who? ->"
    assert dated("Who?") == f"{datetime.now():%d %b %Y} Who? ->"


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message comes first') }}{% endif %}"
        + _PLAIN,
        "{{ messages[0].content.parts[0] }}",
        "{% if %}",
        "[assistant]",
        {"tool_use": _PLAIN, "rag": _PLAIN},
    ],
    ids=["wants a system message", "wants parts", "no template", "drops the message", "none is the usual one"],
)
def test_a_chat_template_that_cannot_be_used_is_left_out_with_a_notice(tokenizer, template):
    tokenizer.chat_template = template
    lines = []
    assert chat_format(tokenizer, lines.append) is None
    (line,) = lines
    assert line.startswith("the chat template cannot be used (") and line.endswith("are left out")


def test_a_chat_template_that_takes_one_message_is_asked_nothing_in_several_turns(tokenizer):
    refusing = "{% if messages|length > 1 %}{{ raise_exception('one message') }}{% endif %}{{ messages[0].content }}"
    tokenizer.chat_template = refusing
    lines = []
    form = chat_format(tokenizer, lines.append)
    assert lines == ["the chat template takes no conversation of several turns (one message): none is tried"]
    assert form("Who?") == "Who?"
    assert [name for name, _ in persuasion("self_correction", "Question: Who?\nAnswer:", form)] == ["text"]
    assert [name for name, _ in persuasion("role_play", "Question: Who?\nAnswer:", form)] == ["text", "chat"]


def test_a_message_that_a_chat_template_refuses_is_an_error_of_one_line(tokenizer):
    word = (
        "{% if 'Japan' in messages[0].content %}{{ raise_exception('no\nJapan') }}{% endif %}{{ messages[0].content }}"
    )
    tokenizer.chat_template = word
    form = chat_format(tokenizer)
    assert form("Who is in Peru?") == "Who is in Peru?"
    with pytest.raises(InputError, match=r"^the chat template refuses the message 'Who is in Japan\?' \(no"):
        form("Who is in Japan?")


def test_how_long_a_template_runs_is_bounded(tokenizer, monkeypatch):
    tokenizer.chat_template = "{% for _ in range(messages[0].content|length * 30) %}{% endfor %}" + _PLAIN
    monkeypatch.setattr(chat_form, "MAX_LINES", 2_000)
    before = sys.gettrace()
    lines = []
    form = chat_format(tokenizer, lines.append)
    assert (lines, sys.gettrace()) == ([], before)
    with pytest.raises(InputError, match=r"refuses the message 'What is .* \(it runs more than 2000 lines\)"):
        form("What is longer than a question?")
    monkeypatch.setattr(chat_form, "MAX_LINES", 200)
    assert chat_format(tokenizer, lines.append) is None
    assert lines == [
        "the chat template cannot be used (it runs more than 200 lines): questions in chat form are left out"
    ]
    assert sys.gettrace() is before
