"""Foreign text is shown, and does nothing else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from amnesia.plain_text import for_markdown, for_terminal

MARKDOWN = MarkdownIt("gfm-like", {"linkify": False, "html": True})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Michael Jordan", "Michael Jordan"),
        ("Ångström 東京 “x” 👩‍🚀 \u00a0", "Ångström 東京 “x” 👩‍🚀 \u00a0"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\rb\x07", "a\\rb\\x07"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\x9b1mb\x7f", "a\\x9b1mb\\x7f"),
        ("a\u2028b", "a\\u2028b"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\ud800\U000e0041", "\\ud800\\U000e0041"),
    ],
)
def test_controls_are_shown_as_escapes_and_letters_as_they_are(text, shown):
    assert for_terminal(text) == shown
    assert for_terminal(f"{text}\n\t", lines=True).endswith("\n\t")


@pytest.mark.slow
@given(st.text(st.characters()))
def test_nothing_that_controls_is_left(text):
    shown = for_terminal(text)
    assert not {unicodedata.category(sign) for sign in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {*shown} & {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"}
    shown.encode()


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=y>",
        "<script>x</script>",
        "![seen](https://example.org/x.png)",
        "[here](https://example.org)",
        "<https://example.org>",
        "a | b",
        "`code` **bold** _em_ ~~gone~~",
        "C#",
        "C #",
        "a &amp; &lt;b&gt; &#60;",
        "a\\",
        "\n\n# Another heading\n\n- x",
    ],
)
def test_a_name_in_markdown_is_only_a_name(name):
    plain = " ".join(name.split())
    for source, kind in ((f"# On {for_markdown(name)}", "heading"), (f"On {for_markdown(name)} and more", "paragraph")):
        tokens = MARKDOWN.parse(source)
        assert [token.type for token in tokens] == [f"{kind}_open", "inline", f"{kind}_close"]
        assert {child.type for child in tokens[1].children} <= {"text", "text_special"}
        shown = "".join(child.content for child in tokens[1].children)
        assert shown in (f"On {plain}", f"On {plain} and more")
    row = MARKDOWN.parse(f"| a | b |\n|---|---|\n| {for_markdown(name)} | 1 |\n")
    assert sum(token.type == "td_open" for token in row) == 2
