"""`ui`, as it is started and ended in a terminal; the page is in `tests/ui`."""

import json
import re
import signal
import urllib.error
import urllib.request

import pytest

from support.commands import in_process, refused


@pytest.fixture
def page(model, recipe):
    """The command and the address that it prints."""
    process = in_process("ui", model, "--recipe", recipe)
    try:
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+)/\?token=([\w-]{43})\n", process.stdout.readline())
        assert found, process.stderr.read()
        yield process, *found.groups()
    finally:
        process.kill()
        process.communicate()


def post(host, token, action, body):
    headers = {"Origin": host, "Authorization": f"Bearer {token}"}
    return urllib.request.urlopen(urllib.request.Request(f"{host}/{action}", json.dumps(body).encode(), headers))


def test_an_entity_without_a_recipe_is_not_dropped(model):
    assert "--entity picks the facts of a recipe: give --recipe" in refused("ui", model, "--entity", "Japan")


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
@pytest.mark.processes
def test_the_server_ends_with_its_terminal_and_says_what_it_wrote(page, tmp_path, sent):
    process, host, token = page
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(host)
    assert b"What should it forget?" in urllib.request.urlopen(f"{host}/?token={token}").read()
    assert b"event: done" in post(host, token, "search", {"entity": "Japan"}).read()
    edit = {"entity": "Japan", "strength": 1, "cells": []}
    saved = {"edit": edit, "format": "adapter", "output": str(tmp_path / "out")}
    assert b"event: saved" in post(host, token, "save", saved).read()
    # It does not wait for those who still listen.
    waiting = post(host, token, "attempt", {"edit": edit, "prompt": "the capital of Japan is", "chat": False})
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    waiting.close()
    assert (process.returncode, out) == (128 + sent, "")
    assert err.splitlines()[-1] == f"interrupted: {tmp_path / 'out'} was written"
    assert "Traceback" not in err and (tmp_path / "out" / "amnesia.json").is_file()


def test_what_cannot_be_served_is_one_line(model, tmp_path):
    assert "give a .toml file" in refused("ui", model, "--recipe", tmp_path / "none.toml")
    assert "none" in refused("ui", tmp_path / "none")
    table = tmp_path / "none.tsv"
    assert f"{table} cannot be read" in refused("ui", model, "--popqa", table)
