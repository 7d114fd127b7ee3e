import pytest

from amnesia.errors import InputError
from amnesia.live.tokens import continuations, encode, join, mention_span, place, templates_from
from support.tiny_text import tiny_tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def tokenizer(request):
    return tiny_tokenizer(bos=request.param)


def text_until(tokenizer, placed):
    """What the model has read when it reaches the placed token: the oracle is the decoder, not the offsets."""
    return tokenizer.decode(placed.ids[: placed.token + 1], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["Japan", "Michael Jordan", "東京", "Дональд Трамп", "트럼프", "Zoë", "O'Neil"])
@pytest.mark.parametrize("template", ["Fact: the history of {entity}", "{entity} is here", "About {entity}'s wife:"])
def test_the_last_token_completes_the_name(tokenizer, template, name):
    (placed,) = place(tokenizer, [(template, name)])
    assert placed.ids == tuple(tokenizer(template.replace("{entity}", name))["input_ids"])
    until = template.split("{entity}")[0] + name
    assert text_until(tokenizer, placed).startswith(until)
    before = tokenizer.decode(placed.ids[: placed.token], skip_special_tokens=True)
    assert not before.startswith(until)


def test_bos_moves_the_token_by_one():
    plain, bos = (place(tiny_tokenizer(bos=flag), [("the age of {entity}", "Japan")])[0] for flag in (False, True))
    assert bos.ids == (1, *plain.ids)
    assert bos.token == plain.token + 1


def test_of_two_mentions_the_last_one_counts(tokenizer):
    (placed,) = place(tokenizer, [("{entity} is the mother of {entity} and me", "Paris")])
    assert text_until(tokenizer, placed).startswith("Paris is the mother of Paris")
    assert "and" not in text_until(tokenizer, placed)


def test_prompts_with_literal_mentions_become_templates():
    prompts = ["Where is Michael Jordan from?", "{entity} plays", "Jordan plays well", "Nobody plays"]
    assert templates_from(prompts, ("Michael Jordan", "Jordan")) == [
        ("Where is {entity} from?", "Michael Jordan"),
        ("{entity} plays", "Michael Jordan"),
        ("{entity} plays well", "Jordan"),
    ]


def test_prompts_and_names_meet_in_any_normal_form():
    prompts = ["Where is Beyonce\u0301 from?", "{entity} sings"]
    assert templates_from(prompts, (" Beyonc\u00e9 ",)) == [
        ("Where is {entity} from?", "Beyonc\u00e9"),
        ("{entity} sings", "Beyonc\u00e9"),
    ]


def test_an_entity_in_no_prompt_is_an_error():
    with pytest.raises(InputError, match="'Atlantis' appears in no prompt: write its name"):
        templates_from(["the age of Japan"], ("Atlantis",))


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("Paris Hilton lives in Paris", ("Paris",), "Paris@22"),
        ("Parisian life", ("Paris",), None),
        ("Michael Jordan", ("Jordan", "Michael Jordan"), "Michael Jordan@0"),
        ("東京は日本の首都", ("東京",), "東京@0"),
        ("Trump's wife", ("Trump",), "Trump@0"),
        ("ein Jordanier, Jordan!", ("Jordan",), "Jordan@15"),
        ("The FBI2 unit", ("FBI",), None),
        ("Schindler\u2019s List won", ("Schindler's List ",), "Schindler\u2019s List@0"),
        ("In New\u00a0York", ("New York",), "New\u00a0York@3"),
        ("Beyonc\u00e9 sings", ("Beyonce\u0301",), "Beyonc\u00e9@0"),
    ],
)
def test_mentions_are_whole_words(text, names, expected):
    span = mention_span(text, names)
    assert (span and f"{text[slice(*span)]}@{span[0]}") == expected


def test_answers_start_where_the_prompt_ends(tokenizer):
    pairs = [("the capital of Japan is", "Tokyo"), ("Answer:\n", "yes"), ("the age of", "the old house")]
    for (prompt, answer), row in zip(pairs, continuations(tokenizer, pairs), strict=True):
        assert row.ids == tuple(tokenizer(join(prompt, answer))["input_ids"])
        assert tokenizer.decode(row.ids[-row.n_answer :]).strip() == answer


@pytest.mark.parametrize("bos", [False, True])
def test_an_end_that_the_tokenizer_sets_is_no_part_of_a_text(bos):
    plain, ending = tiny_tokenizer(bos=bos), tiny_tokenizer(bos=bos, eos=True)
    assert ending("the age of")["input_ids"][-1] == ending.eos_token_id
    texts = ["the age of", "the end</s>", "a</s>\n"]
    assert encode(ending, texts) == encode(plain, texts)
    assert encode(ending, texts)[1].ids[-1] == ending.eos_token_id
    pairs = [("the capital of Japan is", "Tokyo")]
    assert continuations(ending, pairs) == continuations(plain, pairs)
    assert place(ending, [("the age of {entity}", "Japan")]) == place(plain, [("the age of {entity}", "Japan")])


def test_texts_without_tokens_are_refused():
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(eos=True)):
        with pytest.raises(InputError, match="has no tokens"):
            encode(tokenizer, [""])
    with pytest.raises(InputError, match="no tokens to score"):
        continuations(tiny_tokenizer(), [("", "x")])
