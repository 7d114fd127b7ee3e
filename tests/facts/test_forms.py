"""Prompts as sentences, questions and messages."""

from amnesia.domain import Fact
from amnesia.facts.forms import as_message, sentence, with_messages
from amnesia.facts.questions import Question


def chat(message):
    return f"<user>{message}<assistant>\n"


def test_a_statement_becomes_a_sentence_to_complete_and_a_question_a_question():
    assert sentence("Fact: the capital of {entity} is") == "The capital of {entity} is"
    assert as_message("Fact: the capital of {entity} is", chat) == (
        "<user>Complete this sentence: The capital of {entity} is ...<assistant>\nThe capital of {entity} is"
    )
    assert (
        as_message("Question: Who leads {entity}?\nAnswer: It is", chat)
        == "<user>Who leads {entity}?<assistant>\nIt is"
    )
    assert as_message("Q: Who leads {entity}?\nA:", chat) == "<user>Who leads {entity}?<assistant>\n"


def test_what_is_put_before_a_question_stands_in_its_message():
    assert as_message("{entity} is", chat, "One of two.\n") == (
        "<user>One of two.\nComplete this sentence: {entity} is ...<assistant>\n{entity} is"
    )
    assert as_message("Q: Who?\nA: It is", chat, "One of two.\n") == "<user>One of two.\nWho?<assistant>\nIt is"


def test_half_of_each_role_and_split_is_asked_as_a_message_too():
    kinds = [("target", "search")] * 3 + [("target", "held_out")] * 2 + [("control", "search")]
    questions = [
        Question(role, Fact("Peru", f"sentence {n} about {{entity}} is", "x", split), relation="capital")
        for n, (role, split) in enumerate(kinds)
    ]
    assert with_messages(questions, None) == tuple(questions)
    asked = with_messages(questions, chat)
    assert asked[:6] == tuple(questions)
    assert [row.fact.prompt for row in asked[6:]] == [as_message(questions[n].fact.prompt, chat) for n in (0, 2, 3, 5)]
    assert all(row.is_message and row.relation == "capital" and row.fact.answer == "x" for row in asked[6:])
