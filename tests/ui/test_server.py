"""The server of the page by the test client of its library: who gets in, what is answered, what is cancelled."""

import dataclasses
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.compare import open_duet
from amnesia.edits import EntityEdits
from amnesia.evaluation.measurement import known_facts
from amnesia.facts.popqa import PopqaRow
from amnesia.facts.questions import questions_of
from amnesia.live.duet import Sampling
from amnesia.live.loading import load_source
from amnesia.progress import SILENT
from amnesia.sources.resolve import resolve
from amnesia.ui import session as ui_session
from amnesia.ui.jobs import Worker
from amnesia.ui.server import MAX_BODY
from amnesia.ui.session import N_TOKENS, Session
from support.commands import done as called
from support.folders import tree
from support.ui_client import EDIT, OURS, PROMPT, TOKEN, done, events, failed, post, served


class Counting(Worker):
    """Says how many jobs were begun."""

    begun = 0

    def start(self, job):
        super().start(job)
        self.begun += 1


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("action", ["search", "attempt", "map", "save", "cancel"])
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"host": "localhost:4321"}, "this server is 127.0.0.1:4321"),
        ({"host": "rebound.example:4321"}, "this server is"),
        ({"host": "127.0.0.1"}, "this server is"),
        ({"origin": "http://127.0.0.1:1"}, "comes from another page"),
        ({"origin": "https://127.0.0.1:4321"}, "comes from another page"),
        ({"origin": "null"}, "comes from another page"),
        ({"origin": None}, "comes from another page"),
        ({"authorization": "Bearer another"}, "token is missing or wrong"),
        ({"authorization": "Bearer "}, "token is missing or wrong"),
        ({"authorization": None}, "token is missing or wrong"),
    ],
)
def test_nobody_else_gets_anything_done(client, session, action, changed, line):
    headers = {name: value for name, value in (OURS | changed).items() if value is not None}
    answer = client.post(f"/{action}?token={TOKEN}", json={"entity": "Japan"}, headers=headers)
    assert (answer.status_code, line in answer.text) == (403, True)
    assert session.subject is None


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("/", {}),
        ("/?token=another", {}),
        ("/", {"authorization": f"Bearer {TOKEN}"}),
        (f"/?token={TOKEN}", {"host": "rebound.example"}),
        (f"/?token={TOKEN}", {"origin": "http://elsewhere.example"}),
    ],
)
def test_the_page_is_only_for_who_has_its_address(client, address, headers):
    answer = client.get(address, headers=headers)
    assert answer.status_code == 403 and "<" not in answer.text


def test_the_page_lets_nothing_in_from_elsewhere(source, live, recipe):
    name = "<script>alert(1)</script>"
    named = dataclasses.replace(recipe, target=dataclasses.replace(recipe.target, entity=name))
    with served(Session(source, live, named)) as client:
        answer = client.get(f"/?token={TOKEN}")
    assert name not in answer.text and "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'none'" in policy
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval)\b|https?://(?!www\.w3\.org)", answer.text)


def test_a_search_tells_the_cells_the_facts_and_the_edit(client, live, recipe):
    told = done(post(client, "search", {"entity": " japan "}))
    assert told["cells"]["entity"] == "Japan" and len(told["cells"]["layers"]) == live.shape.n_layers
    scores = [row["score"] for row in told["cells"]["cells"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == max(row["best"] for row in told["cells"]["layers"])
    assert {row["role"] for row in told["facts"]["prompts"]} == {"target", "control"}
    assert told["edit"]["what"] == "cell 1:11 times −1, cell 0:3 times −2"
    assert told["edit"]["layers"] == [0, 1]


def test_who_is_forgotten_already_is_not_spared(source, recipe, tmp_path, monkeypatch):
    called("edit", source.folder, "--cell", "1:5", "--entity", "Norway", "-o", tmp_path / "edited")
    seen, edited = [], resolve(str(tmp_path / "edited"))

    def watched(*arguments):
        seen.append(arguments[-1])
        return choose(*arguments)

    monkeypatch.setattr(ui_session, "choose", watched)
    with served(Session(edited, load_source(edited), recipe)) as client:
        done(post(client, "search", {"entity": "Japan"}))
    assert seen == [("Norway",)]


@pytest.mark.slow
def test_answers_are_those_of_the_model_and_its_edited_self_and_scores_those_of_the_choice(
    client, source, live, recipe
):
    done(post(client, "search", {"entity": "Japan"}))
    told = done(post(client, "attempt", {"edit": EDIT, **PROMPT}))
    groups = [EntityEdits("Japan", recipe.edit.cells)]
    duet = open_duet(str(source.folder), None, groups, SILENT)
    before, after = duet.answer([PROMPT["prompt"]], Sampling(N_TOKENS))
    assert told["answer"] == {"before": before, "after": after} and before != after
    facts = known_facts(live, questions_of(recipe), recipe.scoring)
    found = choose(live, recipe, *select_known(facts))
    means = {(row["role"], row["split"]): row["mean"] for row in told["scores"]["rows"]}
    assert len(means) == 4
    assert means["target", "search"] == pytest.approx(found.target, abs=1e-6)
    assert means["control", "search"] == pytest.approx(found.control, abs=1e-6)


@pytest.mark.slow
def test_facts_are_asked_again_for_another_edit_or_entity_but_not_for_another_prompt(client):
    def asked(strength, prompt):
        told = events(post(client, "attempt", {"edit": {**EDIT, "strength": strength}, **PROMPT, "prompt": prompt}))
        again = ("task", {"line": "asking about the facts", "total": None}) in told
        return again, dict(told)["scores"]

    done(post(client, "search", {"entity": "Japan"}))
    first = asked(1, "Japan is")
    assert first[0] and asked(1, "Tokyo is") == (False, first[1])
    weaker = asked(0.5, "Tokyo is")
    assert weaker[0] and weaker[1] != first[1]
    done(post(client, "search", {"entity": "Japan"}))
    assert asked(0.5, "Tokyo is") == weaker


def test_no_strength_changes_nothing_and_cells_of_ones_own_come_in_place(client):
    done(post(client, "search", {"entity": "Japan"}))
    none = {**EDIT, "strength": 0}
    told = done(post(client, "attempt", {"edit": none, **PROMPT}))
    assert told["answer"]["before"] == told["answer"]["after"]
    assert {value for row in told["map"]["rows"] for value in row} == {0.0}
    assert all(row["mean"] == pytest.approx(1, abs=1e-5) for row in told["scores"]["rows"])
    own = [{"cell": "1:11", "multiplier": 1}, {"cell": "0:3", "multiplier": -2}]
    shown = [done(post(client, "map", {"edit": {**EDIT, "cells": cells}, **PROMPT}))["map"] for cells in ([], own)]
    alone = done(post(client, "map", {"edit": {**none, "cells": own[1:]}, **PROMPT}))["map"]
    assert shown[1] == alone != shown[0]


@pytest.mark.slow
def test_facts_come_from_a_table_where_it_has_the_name(source, live):
    with served(Session(source, live, table=[PopqaRow("Japan", "capital", "Zzyzx", (), 10)])) as client:
        assert "knows 0 of 9 wordings of facts about 'japan'" in failed(post(client, "search", {"entity": "japan"}))
        assert "says nothing of its own about 'Nowhere'" in failed(post(client, "search", {"entity": "Nowhere"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "body", "line"),
    [
        ("search", {}, "lacks the key 'entity'"),
        ("search", [], "expected an object"),
        ("search", {"entity": 3}, "has 3 as entity, expected a string"),
        ("search", {"entity": " "}, "no entity given, or an empty one"),
        ("search", {"entity": "x" * 301}, "has 301 characters: expected at most 300"),
        ("search", {"entity": "x" * MAX_BODY}, "shorten the prompt"),
        ("attempt", {"edit": EDIT, **PROMPT, "prompt": " "}, "no prompt is given"),
        ("attempt", {"edit": EDIT, **PROMPT, "prompt": "word " * 200}, "shorten"),
        ("attempt", {"edit": {**EDIT, "strength": 1e300}, **PROMPT}, "changes nothing or is beyond"),
        ("attempt", {"edit": {**EDIT, "strength": "1"}, **PROMPT}, "expected a finite number"),
        ("attempt", {"edit": {**EDIT, "entity": "Peru"}, **PROMPT}, "'Peru' is not what was last searched for"),
        ("map", {"edit": {**EDIT, "cells": [{"cell": "9:1", "multiplier": 0}]}, **PROMPT}, "layer 9 is out of range"),
        ("map", {"edit": {**EDIT, "cells": [{"cell": "../x", "multiplier": 0}]}, **PROMPT}, "is malformed"),
        ("save", {"edit": EDIT, "format": "pickle", "output": "x"}, "there is no format 'pickle'"),
        ("save", {"edit": EDIT, "format": "gguf", "output": "x"}, "there is no format 'gguf'"),
        ("save", {"edit": EDIT, "format": "edit", "output": ""}, "no place to save to"),
        *(
            ("save", {"edit": EDIT, "format": form, "output": output}, line)
            for form in ("safetensors", "adapter", "edit", "recipe")
            for output, line in (
                ("x" * 300, "cannot be written (File name too long): choose another name"),
                (f"{'x' * 300}/y", "cannot be written (File name too long): choose another name"),
                ("a\0b", "holds a null character, which no name can have: choose another name"),
            )
        ),
        ("search", {"entity": "\u200b\u202e"}, "no entity given, or an empty one"),
        ("save", {"edit": {**EDIT, "strength": 0}, "format": "adapter", "output": "x"}, "the edit changes nothing"),
        ("delete", {}, "there is no 'delete'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(client, tmp_path, monkeypatch, action, body, line):
    monkeypatch.chdir(tmp_path)
    done(post(client, "search", {"entity": "Japan"}))
    assert line in failed(post(client, action, body))
    assert tree(tmp_path) == {}
    done(post(client, "map", {"edit": EDIT, **PROMPT}))


def test_json_that_is_none_is_refused(client):
    for body in (b"", b"{", b'{"entity": NaN}', b"\xff", b"[" * 100_000):
        assert "the request" in failed(client.post("/search", content=body, headers=OURS))


@pytest.mark.slow
def test_a_name_of_which_the_model_knows_nothing_still_has_its_cells(client, tmp_path):
    told = events(post(client, "search", {"entity": "Nobody<b>"}))
    assert (told[-1][0], "says nothing of its own" in told[-1][1]["line"]) == ("error", True)
    assert dict(told)["cells"]["entity"] == "Nobody<b>"
    cell = dict(told)["cells"]["cells"][0]["cell"]
    wanted = {"entity": "Nobody<b>", "strength": 1, "cells": [{"cell": cell, "multiplier": -9}]}
    told = done(post(client, "attempt", {"edit": wanted, **PROMPT}))
    assert "scores" not in told and max(value for row in told["map"]["rows"] for value in row) > 0
    place = str(tmp_path / "r.toml")
    assert "no facts for a recipe" in failed(
        post(client, "save", {"edit": wanted, "format": "recipe", "output": place})
    )


class Slow(Session):
    """Begins when it is allowed to."""

    def begin(self):
        self.begun, self.gate = [], threading.Event()
        return self

    def search(self, job, entity):
        self.begun.append(entity)
        assert self.gate.wait(60)
        super().search(job, entity)

    def map(self, job, wanted, prompt, as_chat):
        self.begun.append(prompt)
        assert self.gate.wait(60)
        super().map(job, wanted, prompt, as_chat)


def test_fifty_clicks_leave_one_search_running(source, live, recipe):
    session = Slow(source, live, recipe).begin()
    with served(session) as client, ThreadPoolExecutor(50) as clicks:
        answers = [clicks.submit(post, client, "search", {"entity": "Japan"}) for _ in range(50)]
        until(lambda: sum(answer.done() for answer in answers) == 49)
        assert "a search is running" in failed(post(client, "map", {"edit": EDIT, **PROMPT}))
        session.gate.set()
        codes = [answer.result().status_code for answer in answers]
        assert (codes.count(200), codes.count(400), session.begun) == (1, 49, ["Japan"])
        done(next(answer.result() for answer in answers if answer.result().status_code == 200))


def test_of_answers_the_last_that_was_asked_for_is_given(source, live, recipe):
    session, worker = Slow(source, live, recipe).begin(), Counting()
    with served(session, worker) as client, ThreadPoolExecutor(50) as clicks:
        session.gate.set()
        done(post(client, "search", {"entity": "Japan"}))
        session.gate.clear()
        answers = [clicks.submit(post, client, "map", {"edit": EDIT, **PROMPT}) for _ in range(20)]
        until(lambda: worker.begun == 21)
        session.gate.set()
        ends = [events(answer.result())[-1][0] for answer in answers]
        assert sorted(ends) == ["cancelled"] * 19 + ["done"]


def test_what_is_cancelled_ends_and_the_next_begins(source, live, recipe):
    session = Slow(source, live, recipe).begin()
    with served(session) as client, ThreadPoolExecutor(1) as clicks:
        answer = clicks.submit(post, client, "search", {"entity": "Japan"})
        until(lambda: session.begun)
        assert client.post("/cancel", headers=OURS).status_code == 200
        session.gate.set()
        assert events(answer.result())[-1] == ("cancelled", {})
        assert session.subject is None
        done(post(client, "search", {"entity": "Japan"}))


def test_what_tells_of_no_steps_is_cancelled_at_the_next_pass_of_the_model(source, live, recipe):
    class Untold(Slow):
        def search(self, job, entity):
            self.begun.append(entity)
            assert self.gate.wait(60)
            self.live.model(input_ids=torch.tensor([[1, 2]]))
            self.begun.append("passed")

    session = Untold(source, live, recipe).begin()
    with served(session) as client, ThreadPoolExecutor(1) as clicks:
        for cancelled, told in ((True, ["Japan"]), (False, ["Japan", "Japan", "passed"])):
            session.gate.clear()
            n = len(session.begun)
            answer = clicks.submit(post, client, "search", {"entity": "Japan"})
            until(lambda n=n: len(session.begun) > n)
            if cancelled:
                client.post("/cancel", headers=OURS)
            session.gate.set()
            assert events(answer.result()) == [("cancelled" if cancelled else "done", {})]
            assert session.begun == told
