import operator

from amnesia.facts.answers import matches
from amnesia.facts.names import entities_by_kind
from amnesia.stress.instructions import instructions, instructions_without

OPERATIONS = {"−": operator.sub, "×": operator.mul, "+": operator.add}


def test_there_are_hundreds_of_different_ones():
    pairs = instructions()
    assert len(pairs) >= 300
    assert len({given for given, _ in pairs}) == len(set(pairs)) == len(pairs)
    assert all(text == text.strip() and text for pair in pairs for text in pair)


def test_they_name_nobody_that_is_known():
    names = [name for kind in entities_by_kind().values() for name in kind]
    assert names
    told = [(name, pair) for pair in instructions() for name in names if matches(" ".join(pair), [name])]
    assert not told


def test_sums_are_right():
    sums = [answer for _, answer in instructions() if " = " in answer and answer[0].isdigit()]
    assert len(sums) >= 40
    for answer in sums:
        first, sign, second, _, result = answer.split(",")[0].split()
        assert OPERATIONS[sign](int(first), int(second)) == int(result), answer


def test_those_that_name_the_entity_or_an_answer_are_left_out():
    left = instructions_without(["velvet", "herbivores"])
    gone = set(instructions()) - set(left)
    assert gone and all(any(word in " ".join(pair) for word in ("velvet", "herbivores")) for pair in gone)
    assert instructions_without([]) == instructions()
