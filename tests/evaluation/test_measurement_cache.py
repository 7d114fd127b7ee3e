"""Measurements outlive the process that made them, and belong to one model."""

import os
import signal
import subprocess
import sys

import pytest

from amnesia.domain import Fact
from amnesia.errors import InputError, OutputError
from amnesia.evaluation.measurement import measure, measure_unknown, write
from amnesia.evaluation.measurement_cache import MeasurementCache, beside, for_now, once
from amnesia.facts.questions import Question
from support.tiny_text import tiny_live

QUESTIONS = [
    Question("target", Fact(name, "the capital of {entity} is", "Tokyo")) for name in ("Japan", "Peru", "Kenya")
]
PAIRS = [question.pair for question in QUESTIONS]
PROMPTS = [prompt for prompt, _ in PAIRS]


def test_values_belong_to_a_model_and_a_kind(tmp_path):
    one, other = MeasurementCache(tmp_path / "m", "one"), MeasurementCache(tmp_path / "m", "other")
    one.add("text", {"a": "Tokyo\n日本", "b": ""})
    one.add("text", {"b": "x"})
    other.add("logprob", {"a": [-1.25, -0.5, 3]})
    assert one.known("text") == {"a": "Tokyo\n日本", "b": "x"}
    assert (other.known("text"), other.known("logprob")) == ({}, {"a": [-1.25, -0.5, 3]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        one.add("text", {"c": float("nan")})


def test_no_more_is_read_than_is_asked_for(tmp_path):
    live, cache = tiny_live(), MeasurementCache(tmp_path / "m", "tiny")
    expected = measure(live, PAIRS)
    assert measure(live, PAIRS, cache=cache) == expected
    with cache._open() as file, file:
        # What cannot be read is in the way of who reads it.
        rows = [("tiny", kind, "another", "no JSON") for kind in ("logprob", "about")]
        file.executemany("INSERT INTO measured VALUES (?, ?, ?, ?)", rows)
    assert measure(live, PAIRS, cache=cache) == expected
    assert once(cache, "about", ("a",), lambda: 1) == 1
    assert once(cache, "about", ("a",), lambda: 2) == 1
    with pytest.raises(ValueError, match="Expecting value"):
        cache.known("logprob")


def test_any_number_of_items_can_be_asked_for(tmp_path):
    cache = MeasurementCache(tmp_path / "m", "one")
    cache.add("text", {f"{n}": n for n in range(1300)})
    wanted = [f"{n}" for n in range(100, 1400)]
    assert cache.known("text", [*wanted, *wanted]) == {f"{n}": n for n in range(100, 1300)}
    assert cache.known("text", []) == {}


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "m").write_text("something else, and longer than a header of a database would be")
    with pytest.raises(OutputError, match="cannot be used as a file of measurements"):
        MeasurementCache(tmp_path / "m", "one").known("text")


def test_a_file_that_cannot_grow_is_an_error_of_one_line(tmp_path):
    cache = MeasurementCache(tmp_path / "m", "one")
    with pytest.raises(OutputError, match=r"cannot be used as a file of measurements \(.*full\): free space"):
        with cache._open() as file:
            file.execute("PRAGMA max_page_count = 8")
            file.execute("INSERT INTO measured VALUES ('one', 'text', 'a', ?)", ("x" * 100_000,))
    cache.add("text", {"a": "b"})
    assert cache.known("text") == {"a": "b"}


def test_a_second_measurement_asks_nothing(tmp_path, monkeypatch):
    live, cache = tiny_live(), MeasurementCache(tmp_path / "m", "tiny")

    def ask(cache=None):
        return (
            measure(live, PAIRS, cache=cache),
            write(live, PROMPTS, cache=cache),
            measure_unknown(live, QUESTIONS, cache=cache),
        )

    first = ask(cache)
    assert first == ask()
    for name in ("answer_logprobs", "generate"):
        monkeypatch.setattr(f"amnesia.evaluation.measurement.{name}", lambda *_, **__: pytest.fail("asked again"))
    assert ask(cache) == first


def test_what_was_asked_before_a_failure_is_not_asked_again(tmp_path, monkeypatch):
    live, cache = tiny_live(), MeasurementCache(tmp_path / "m", "tiny")
    monkeypatch.setattr("amnesia.evaluation.measurement.BATCH", 1)
    asked = []

    def ask(_live, pairs, _progress):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(pairs)
        return real(live, pairs)

    from amnesia.live.forward import answer_logprobs as real

    monkeypatch.setattr("amnesia.evaluation.measurement.answer_logprobs", ask)
    with pytest.raises(KeyboardInterrupt):
        measure(live, PAIRS, cache=cache)
    assert len(cache.known("logprob")) == 2
    again = []
    monkeypatch.setattr(
        "amnesia.evaluation.measurement.answer_logprobs", lambda _, pairs, __: again.extend(pairs) or real(live, pairs)
    )
    assert measure(live, PAIRS, cache=cache) == measure(live, PAIRS)
    assert len(again[:1]) == 1 and again[0] not in asked


def test_the_file_goes_when_the_work_is_done_or_refused(tmp_path):
    with beside(tmp_path / "out") as path:
        MeasurementCache(path, "m").add("text", {"a": "b"})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError), beside(tmp_path / "out") as path:
        MeasurementCache(path, "m").add("text", {"a": "b"})
        raise InputError("the model knows nothing")
    assert list(tmp_path.iterdir()) == []
    for error in (KeyboardInterrupt(), OutputError("the disk is full")):
        with pytest.raises(type(error)), beside(tmp_path / "out") as path:
            MeasurementCache(path, "m").add("text", {"a": "b"})
            raise error
        assert MeasurementCache(path, "m").known("text") == {"a": "b"}


def test_a_killed_process_leaves_what_it_had_committed(tmp_path):
    code = (
        "import sys, pathlib; from amnesia.evaluation.measurement_cache import MeasurementCache\n"
        "cache = MeasurementCache(pathlib.Path(sys.argv[1]), 'm')\n"
        "for number in range(10**9): cache.add('text', {str(number): 'x', f'-{number}': 'x'}); print(number, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "m"], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        last = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    known = MeasurementCache(tmp_path / "m", "m").known("text")
    assert {str(number) for number in range(last + 1)} <= set(known)
    assert len(known) % 2 == 0


def test_what_was_found_once_is_not_looked_for_again():
    found = []

    def find():
        found.append(len(found))
        return {"n": found[-1], "text": ["日本", 0.5]}

    with for_now() as path:
        cache = MeasurementCache(path, "m")
        first, again = (once(cache, "kind", ("a", 1), find) for _ in range(2))
        assert first == again == {"n": 0, "text": ["日本", 0.5]}
        assert once(cache, "kind", ("a", 2), find)["n"] == 1
        assert once(MeasurementCache(path, "other"), "kind", ("a", 1), find)["n"] == 2
    assert not path.parent.exists()
    assert (once(None, "kind", ("a", 1), find)["n"], once(None, "kind", ("a", 1), find)["n"]) == (3, 4)
