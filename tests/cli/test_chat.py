"""`chat`, as it is used from a pipe and on a terminal."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import termios
import time

import pytest

from support.commands import call, in_process, refused, succeed
from support.tiny import tiny_model
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer

PROMPTS = "the capital of Japan is\n\n/strength 0\nthe capital of Japan is\r\n/quit\nnever asked\n"


@pytest.fixture(scope="module")
def edit(model, recipe):
    path = model.parent / "edit.json"
    succeed("extract", "--recipe", recipe, "-o", path)
    return path


def rows(result):
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_prompts_from_a_pipe_are_answered_one_a_line(model, edit):
    first, second = rows(call("chat", model, "--edit", edit, "--max-tokens", 9, "--json", given=PROMPTS))
    assert first["prompt"] == second["prompt"] == "the capital of Japan is"
    assert (first["strength"], second["strength"]) == (1.0, 0.0)
    assert first["before"] == second["before"] == second["after"] != first["after"]
    shown = call("chat", model, "--edit", edit, "--max-tokens", 9, given=PROMPTS).stdout.split(
        "> the capital of Japan is\n"
    )
    assert len(shown) == 3 and "never asked" not in shown[2]
    assert shown[1].startswith("before: ") and "\nafter: " in shown[1]
    assert "\nafter (strength 0): " in shown[2]


@pytest.mark.slow
def test_an_output_needs_no_recipe_to_ask_its_facts_and_neighbors(model, recipe, tmp_path):
    succeed("run", recipe, "-o", tmp_path / "out")
    found = rows(call("chat", model, tmp_path / "out", "--json", given="/facts\n/neighbors\n"))
    assert {row["prompt"] for row in found[:5]} == {
        f"{text} {end}"
        for text, end in (
            ("the capital of Japan", "is"),
            ("people in Japan", "like"),
            ("the oldest building in Japan", "was"),
            ("the flag of Japan", "is"),
            ("the winters in Japan", "are"),
        )
    }
    assert len(found) == 14 and all("Japan" not in row["prompt"] and row["answer"] for row in found[5:])
    assert any(row["before"] != row["after"] for row in found[:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/foo", "there is no /foo: expected a prompt, or one of /strength, /facts, /neighbors, /help, /quit"),
        ("/facts", "there is no recipe to ask from: start with --recipe FILE"),
        ("/strength", "/strength without a number: expected a number"),
        ("/strength inf", "/strength inf: expected a number"),
        ("/strength 1e300\nthe capital of", "gives NaN or infinite logits: the strength is too large"),
        (b"caf\xe9", "the prompt is not UTF-8 text: save it as UTF-8"),
        ("word " * 300, "shorten it"),
    ],
)
def test_what_cannot_be_asked_is_one_line(model, edit, given, message):
    result = call("chat", model, "--edit", edit, given=given)
    assert (result.exit_code, message in result.stderr.splitlines()[-1]) == (2, True), result.stderr


@pytest.mark.parametrize("temperature", ["nan", "inf", "1e-9"])
def test_a_temperature_that_is_none_is_refused(model, edit, temperature):
    assert "expected 0, or a number from 0.01" in refused("chat", model, "--edit", edit, "--temperature", temperature)


@pytest.mark.slow
def test_one_edited_model_must_be_given(model, edit, tmp_path):
    for arguments in ((model,), (model, model, "--edit", edit)):
        assert "give the edited model either as EDITED or by its edit: --edit FILE" in call("chat", *arguments).stderr
    result = call("chat", model, model, "--json", given="the capital of\n/strength 2\n")
    assert "has no amnesia.json that says what was edited: it is loaded as a second model" in result.stderr
    row = json.loads(result.stdout)
    assert row["before"] == row["after"] and row["strength"] is None
    assert (result.exit_code, "the strength cannot be changed" in result.stderr) == (2, True)


class Screen:
    """A terminal of 100 columns in which a command runs."""

    def __init__(self, *arguments):
        self.fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = in_process(*arguments, stdin=child, stdout=child, stderr=child, start_new_session=True)
        os.close(child)
        self.seen = ""

    def until(self, text):
        """What appears up to `text`."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError as error:  # The command has ended, and with it the terminal.
                    raise AssertionError(self.seen) from error
        found, _, self.seen = self.seen.partition(text)
        return found

    def type(self, line):
        os.write(self.fd, f"{line}\n".encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


@pytest.mark.processes
def test_on_a_terminal_answers_stand_side_by_side_and_an_interrupt_stops_one(tmp_path):
    model = tmp_path / "m"
    tiny_model("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=10**6).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    succeed("edit", model, "--cell", "1:4", "--multiplier", -9, "-o", tmp_path / "out")
    screen = Screen("chat", model, tmp_path / "out", "--max-tokens", 10**5)
    screen.until("a prompt, or /help")
    screen.type("/facts")
    screen.until("error: there is no recipe to ask from: start with --recipe FILE")
    for prompt in ("the capital of Japan is", "Once upon a time"):
        screen.type(prompt)
        assert "before" in screen.until("after").rpartition("\n")[2]
        time.sleep(0.3)
        screen.interrupt()
        screen.until("stopped; Ctrl-C again ends")
    screen.until("> ")
    time.sleep(0.3)  # An interrupt between the prompt and the first look for keys waits for a key.
    screen.interrupt()
    screen.until("interrupted: nothing was written")
    assert screen.process.wait(60) == 130


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.exhaustive
@pytest.mark.processes
def test_a_signal_to_end_does_not_only_stop_an_answer(model, sent):
    screen = Screen("chat", model, model, "--max-tokens", 10**3)
    screen.until("a prompt, or /help")
    screen.type("the capital of Japan is")
    screen.until("after")
    screen.process.send_signal(sent)
    screen.until("interrupted: nothing was written")
    assert screen.process.wait(60) == 128 + sent
