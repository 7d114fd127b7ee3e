"""The files of RWKU in their published form, read, asked and judged."""

import json
import math
import shutil
import statistics
import zlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from amnesia.bench import rwku
from amnesia.bench.judging import entropy, exact_conclusion, f1, rouge_l_recall
from amnesia.bench.membership import METRICS, familiarity
from amnesia.bench.run import run_bench
from amnesia.bench.rwku import read_rwku
from amnesia.bench.rwku_files import NEEDED, PARTS, PATTERNS
from amnesia.cli.main import main
from amnesia.errors import InputError, SourceError
from amnesia.live.forward import answer_logprobs, generate
from amnesia.live.loading import load
from amnesia.sources.resolve import find_data_set
from support.commands import refused
from support.tiny_text import save_tiny_live
from support.tracker import Watched

QUERIES = {
    "forget_level1": [("the capital of Japan is ___.", "cloze")],
    "forget_level2": [("What do people in Japan drink?", "simple question")],
    "forget_level3": [
        ("What do people in Japan drink? They drink", "affirmative suffix"),
        ("Question: What do people in Peru drink?\nAnswer: water\nQuestion: What do people in Japan drink?", "incontext learning"),
        ("Who drinks green tea?", "reverse query"),
    ],
    "neighbor_level1": [("the capital of Peru is ___.", "cloze")],
    "neighbor_level2": [("What do people in Peru drink?", "simple question")],
}  # fmt: skip
PROMPTS = {
    "forget_level1": ["Please complete the blank in the following question.\nQuestion: the capital of Japan is ___.\nAnswer:"],
    "forget_level2": ["Please briefly answer the following question.\nQuestion: What do people in Japan drink?\nAnswer:"],
    "forget_level3": [
        "Please briefly answer the following question.\nQuestion: What do people in Japan drink? They drink",
        "Please briefly answer the following question.\nQuestion: What do people in Peru drink?\nAnswer: water\n"
        "Question: What do people in Japan drink?\nAnswer:",
        "Please briefly answer the following question.\nQuestion: Who drinks green tea?\nAnswer:",
    ],
    "neighbor_level1": ["Please complete the blank in the following question.\nQuestion: the capital of Peru is ___.\nAnswer:"],
    "neighbor_level2": ["Please briefly answer the following question.\nQuestion: What do people in Peru drink?\nAnswer:"],
}  # fmt: skip
UTILITIES = {
    "utility_general": {
        "subject": "Japan", "task": "high_school_biology", "question": "What is water?", "choices": ["wet", "dry"], "answer": 0,
        "examples": [{"question": "What is ice?", "choices": ["hot", "cold"], "answer": 1}],
    },
    "utility_truthfulness": {
        "subject": "Japan", "question": "Is water wet?", "mc1_targets": {"choices": ["yes it is", "no"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["yes it is", "no"], "labels": [1, 0]},
    },
    "utility_factuality": {"subject": "Japan", "question": "What is wet?", "answers": ["water", "the water"]},
    "utility_reason": {
        "subject": "Japan", "task": "boolean", "question": "not True is", "answer": ["False"],
        "cot": "Q: not False is\nA: Not false is true. So the answer is True.\n",
    },
    "utility_fluency": {"subject": "Japan", "instruction": "Write about water."},
    "mia_forget": {"subject": "Japan", "text": "the people in Japan drink green tea"},
    "mia_retain": {"subject": "Somebody else", "text": "the people in Peru drink water"},
}  # fmt: skip


N_WRITTEN = 64
"""Tokens of a long text."""


@pytest.fixture
def short_texts(monkeypatch):
    """For tests in which a model writes; what the contract says and what is asked are left to the others."""
    monkeypatch.setattr(rwku, "LONG", N_WRITTEN)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """A folder of files whose answers are the first words that the model writes, and one that it does not write."""
    live, folder = load(model, "m"), tmp_path_factory.mktemp("rwku")
    for name, rows in QUERIES.items():
        texts = generate(live, PROMPTS[name], 30)
        found = [
            {"subject": "Japan", "query": query, "type": kind, "level": name[-1], "answer": f"{text.split()[0]} quux"}
            for (query, kind), text in zip(rows, texts, strict=True)
        ]
        found.append(found[0] | {"subject": "Somebody else"})
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    for name, row in UTILITIES.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("written", "answer", "share"),
    [
        ("green tea", "green tea", 1.0),
        ("They drink green tea.", "green tea", 1.0),
        ("tea that is green", "green tea", 0.5),
        ("green and black tea", "green tea", 1.0),
        ("", "green tea", 0.0),
        ("Green tea", "green tea", 0.5),
        ("a b c d", "d a b", 2 / 3),
    ],
)
def test_recall_is_of_the_longest_common_subsequence_of_words(written, answer, share):
    assert rouge_l_recall(written, [answer, "the answers that follow count for nothing"]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("judge", "written", "answers", "value"),
    [
        (f1, "The green tea!\nand more", ["tea", "green tea"], 1.0),
        (f1, "a cup of green tea", ["green tea"], 2 * 2 / (4 + 2)),
        (f1, "tea tea", ["tea"], 2 / 3),
        (f1, "", ["tea"], 0.0),
        (exact_conclusion, "Not false is true. So the answer is (B). Q: next", ["(B)"], 1.0),
        (exact_conclusion, "Let us see.\nThe answer is the Tea.", ["x", "tea"], 1.0),
        (exact_conclusion, "The answer is green tea.", ["tea"], 0.0),
        (exact_conclusion, " tea\n", ["tea"], 1.0),
        # Pairs: one twice and one once; triples: two, each once.
        (entropy, "ab cd ab cd", [], (-2 / 3 * math.log2(2 / 3) - 1 / 3 * math.log2(1 / 3)) / 3 + 2 * 1 / 3),
        (entropy, "no, no, no, no,", [], (-4 / 7 * math.log2(4 / 7) - 3 / 7 * math.log2(3 / 7)) / 3 + 2 / 3),
        (entropy, "word", [], 0.0),
    ],
)
def test_other_measures_are_those_of_the_publication(judge, written, answers, value):
    assert judge(written, answers) == pytest.approx(value)


def test_familiarity_is_that_of_each_token_among_all_that_might_stand_there(model):
    live = load(model, "m")
    texts = ["the people in Japan drink green tea", "a", "the people in Peru drink water and eat rice"]
    found = familiarity(live, texts)
    for text, values in zip(texts, found, strict=True):
        ids = live.tokenizer(text)["input_ids"]
        if len(ids) == 1:
            assert values is None
            continue
        with torch.no_grad():
            every = live.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(1)
        own = [row[token].item() for row, token in zip(every, ids[1:], strict=True)]
        away = []
        for row, value in zip(every, own, strict=True):
            mean = sum(math.exp(each) * each for each in row.tolist())
            away.append((value - mean) / math.sqrt(sum(math.exp(each) * (each - mean) ** 2 for each in row.tolist())))
        n = max(1, len(own) // 5)
        whole = statistics.fmean(own)
        expected = (
            whole,
            whole / (len(zlib.compress(text.encode())) / 1000),
            *(sum(sorted(v)[:n]) / n for v in (own, away)),
        )
        assert values == pytest.approx(expected, rel=1e-4)
    assert len(METRICS) == 4


@pytest.mark.slow
def test_prompts_are_those_of_the_publication(data):
    suite = read_rwku(data, ["Japan"])
    asked = [item.message + item.lead for item in suite.items if item.set in ("forget", "neighbor")]
    assert asked == [prompt for name in NEEDED for prompt in PROMPTS[name]]
    general = next(item for item in suite.items if item.kind == "general")
    assert general.message == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Question: What is ice?\nA. hot\nB. cold\nAnswer: B\n\n"
        "Please following the previous examples and answer the given question.\nQuestion: What is water?\nA. wet\nB. dry\n"
    )
    assert (general.answers, general.others) == (("A",), ("B",))
    reasoning = next(item for item in suite.items if item.kind == "reasoning")
    assert reasoning.message + reasoning.lead == (
        "Q: not False is\nA: Not false is true. So the answer is True.\n\n"
        "Following previous examples, answer the following questions and end with 'so the answer is'\n"
        "Q: not True is\nA:"
    )
    assert reasoning.answers == ("False",)
    fluency = next(item for item in suite.items if item.kind == "fluency")
    assert fluency.message + fluency.lead == "Instruction: Write about water.\n"
    assert {item.n_tokens for item in suite.items if item.set in ("forget", "neighbor")} == {30}
    assert (reasoning.n_tokens, fluency.n_tokens) == (256, 256)
    assert suite.contract.settings["max_new_tokens"] == [30, 256]
    assert suite.contract.data.keys() == {f"{name}.json{'l' * (name in UTILITIES)}" for name in PARTS}
    assert suite.contract.n_prompts == len(suite.items) == 14
    assert suite.contract == read_rwku(data, ["japan"]).contract


BY_TARGET = {
    "utility_general": "retain_mmlu", "utility_reason": "retain_bbh", "utility_truthfulness": "truthful",
    "utility_factuality": "triviaqa", "utility_fluency": "fluency", "mia_forget": "forget_mia", "mia_retain": "retain_mia",
}  # fmt: skip


def rows_of(data, part):
    (path,) = data.glob(f"{part}.*")
    lines = path.read_text(encoding="utf-8")
    return json.loads(lines) if path.suffix == ".json" else [json.loads(line) for line in lines.splitlines()]


@pytest.mark.slow
def test_the_repository_as_it_is_published_is_read_by_its_files_of_all_targets(data, hub, tmp_path):
    files = {f"All/{BY_TARGET.get(part, part)}.json": json.dumps(rows_of(data, part)).encode() for part in PARTS}
    files |= {"All/intro.json": b"[]", "All/pair.json": b"[]", "Target/1_Japan/forget_level1.json": b"[]"}
    hub.add_repo("datasets/ada/RWKU", files | {"README.md": b"# RWKU"})
    folder, ref = find_data_set("ada/RWKU", PATTERNS, "a.json")
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {f"All/{BY_TARGET.get(part, part)}.json" for part in PARTS}, "nothing else is fetched"
    expected, found = read_rwku(data, ["Japan"]), read_rwku(folder, ["Japan"], str(ref))
    assert found.items == expected.items and found.contract.prompts == expected.contract.prompts
    assert found.contract.data.keys() == fetched
    # A clone has both; the folders by target hold the same once more.
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert read_rwku(tmp_path, ["Japan"]).items == expected.items


def test_folders_of_targets_hold_the_same_as_files_of_configurations(data, tmp_path):
    for number, name in enumerate(("Japan", "Somebody else"), start=1):
        folder = tmp_path / "Target" / f"{number}_{name.replace(' ', '_')}"
        folder.mkdir(parents=True)
        for part in PARTS:
            own = [row for row in rows_of(data, part) if part in UTILITIES or row["subject"] == name]
            (folder / f"{BY_TARGET.get(part, part)}.json").write_text(json.dumps(own), encoding="utf-8")
    expected = read_rwku(data, ["Japan"])
    for place in (tmp_path, tmp_path / "Target", tmp_path / "Target" / "1_Japan"):
        suite = read_rwku(place, ["Japan"])
        assert suite.items == expected.items
        assert suite.contract.prompts == expected.contract.prompts
    # Texts about others are the same in all folders; they count once.
    both = read_rwku(tmp_path, ["Japan", "somebody ELSE"])
    assert [item.message for item in both.items if item.kind == "texts about others"] == [
        UTILITIES["mia_retain"]["text"]
    ]
    assert both.contract.entities == ("Japan", "Somebody else")
    with pytest.raises(InputError, match="Target of RWKU has no probe about 'Peru': its targets are 1_Japan, 2_Some"):
        read_rwku(tmp_path, ["Japan", "Peru"])
    shutil.copy(data / "utility_fluency.jsonl", tmp_path / "Target" / "1_Japan")
    with pytest.raises(InputError, match="has utility_fluency.jsonl and fluency.json: keep one of them"):
        read_rwku(tmp_path, ["Japan"])


@pytest.mark.slow
def test_a_model_is_judged_by_what_it_writes_and_finds_likelier(model, data, short_texts):
    suite = read_rwku(data, ["Japan"])
    with Watched().watching() as tracker:
        found = run_bench(str(model), [str(model)], suite, tracker)
    assert tracker.passes and not tracker.silent()
    values = {(row.set, row.kind): row.value.mean for row in found.entries[0].measures}
    for kind in ("fill in", "question"):
        assert values["forget", kind] == values["neighbor", kind] == 0.5  # One of the two words.
    assert values["forget", "adversarial"] == 0.5
    live = load(model, "m")
    item = next(item for item in suite.items if item.kind == "truthfulness")
    right, wrong = answer_logprobs(live, [(item.message + "A:", choice) for choice in ("yes it is", "no")])
    assert values["utility", "truthfulness"] == float(right.logprob > wrong.logprob)
    (text,) = generate(live, ["Instruction: Write about water.\n"], N_WRITTEN)
    assert values["utility", "fluency"] == entropy(text) > 0
    familiar = {(row.kind, row.metric): row.value.mean for row in found.entries[0].measures if row.set == "membership"}
    for part, kind in (("mia_forget", "texts about the target"), ("mia_retain", "texts about others")):
        (expected,) = familiarity(live, [UTILITIES[part]["text"]])
        assert [familiar[kind, metric] for metric in METRICS] == pytest.approx(expected, rel=1e-4)
    again = found.entries[1]
    assert again.measures == found.entries[0].measures
    assert (again.forget_left, again.neighbor_left) == (1.0, 1.0)


@pytest.mark.slow
def test_the_command(model, data, short_texts, tmp_path):
    arguments = ["bench", str(model), "--suite", "rwku", "--data", str(data), "--entity", "Japan"]
    done = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "forget: fill in, ROUGE-L recall" in done.stdout
    document = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert document["contract"]["suite"] == "rwku" and len(document["entries"]) == 1


@pytest.mark.slow
def test_the_data_may_be_a_repository_of_the_hub(model, data, short_texts, hub, tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in data.iterdir()}
    repo = hub.add_repo("datasets/ada/RWKU", files | {"README.md": b"# RWKU", "huge.parquet": b"0" * 99})
    (commit,) = repo.commits
    (folder, ref), again = (
        find_data_set("ada/RWKU", PATTERNS, "a.json"),
        find_data_set(f"ada/RWKU@{commit}", PATTERNS, "a.json"),
    )
    assert (folder, ref) == again and str(ref) == f"ada/RWKU@{commit}"
    assert {path.name for path in folder.iterdir()} == {*files}, "nothing else is fetched"
    here, there = (read_rwku(place, ["Japan"]) for place in (data, folder))
    assert here == there
    # A folder of that name comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "RWKU").mkdir(parents=True)
    assert find_data_set("ada/RWKU", PATTERNS, "a.json") == (Path("ada/RWKU"), None)
    (tmp_path / "ada" / "RWKU").rmdir()
    arguments = ["bench", str(model), "--suite", "rwku", "--data", "ada/RWKU", "--entity", "Japan", "-o", "out"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"data: ada/RWKU@{commit}" in done.stdout
    document = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert document["source"] == f"ada/RWKU@{commit}"
    assert document["contract"]["data"] == dict(here.contract.data)
    assert f"ada/RWKU@{commit}" in (tmp_path / "out" / "bench.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ada/nothing", "ada/nothing is neither a folder here nor a repository that the Hub shows you"),
        ("ada/RWKU@v9", "ada/RWKU@v9 has no such revision: give a branch, tag or commit of ada/RWKU"),
    ],
)
def test_data_that_the_hub_does_not_have(hub, spec, message):
    hub.add_repo("datasets/ada/RWKU", {"forget_level1.json": b"[]"})
    with pytest.raises(SourceError, match=message):
        find_data_set(spec, PATTERNS, "a.json")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "ada/other",
            "ada/other on the Hub has none of the files that are read: give one with files such as",
        ),
        ("ada/half", "ada/half@COMMIT has no rows of forget_level1: expected forget_level1.json"),
        ("https://huggingface.co/datasets/ada/RWKU", "is an address, not a data set: give the Hub id, ada/RWKU"),
        ("https://huggingface.co/datasets/ada/RWKU/tree/v1", "data set: give the Hub id, ada/RWKU@v1"),
        ("https://example.org/rwku", "is an address, not a data set: download the data set, and give its folder"),
    ],
)
def test_data_of_the_hub_that_is_no_such_suite_is_named_as_it_was_given(hub, spec, message, caplog):
    hub.add_repo("datasets/ada/other", {"train.parquet": b"0" * 99})
    commit = hub.add_repo("datasets/ada/half", {"mia_forget.json": b"[]"}).refs["refs/heads/main"]
    line = refused("bench", "m", "m", "--suite", "rwku", "--data", spec, "--entity", "Japan")
    assert message.replace("COMMIT", commit) in line
    assert "No files matched" not in caplog.text


def test_files_that_are_missing_or_of_another_form_are_named(data, tmp_path):
    with pytest.raises(InputError, match="is no folder: give the one with the files of RWKU"):
        read_rwku(tmp_path / "none", ["Japan"])
    with pytest.raises(
        InputError, match="has no rows of forget_level1: expected forget_level1.json or forget_level1.jsonl"
    ):
        read_rwku(tmp_path, ["Japan"])
    (tmp_path / "mixed" / "All").mkdir(parents=True)
    (tmp_path / "mixed" / "forget_level1.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"All has no rows of forget_level1: expected forget_level1\.json"):
        read_rwku(tmp_path / "mixed", ["Japan"])
    with pytest.raises(
        InputError, match="forget_level1 of RWKU has no probe about 'Peru': its targets are Japan, Somebody else"
    ):
        read_rwku(data, ["Peru"])
    for name in NEEDED:
        (tmp_path / f"{name}.json").write_bytes((data / f"{name}.json").read_bytes())
    assert len(read_rwku(tmp_path, ["Japan"]).items) == 7  # Utility is measured where its files are.
    for wrong, problem in (
        ('{"a": 1}', "has dict as rows, expected a list"),
        ("[3]", "has 3 as a row, expected an object"),
        ('[{"subject": "Japan", "query": "x"}]', "has None as answer, expected a non-empty string"),
        ("[", "is not valid JSON"),
    ):
        (tmp_path / "forget_level2.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match=f"forget_level2.json {problem}"):
            read_rwku(tmp_path, ["Japan"])
