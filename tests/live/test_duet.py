"""Two answers from one batch against two plain generations: token for token, whatever was edited and where it lies."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from amnesia.compare import open_duet
from amnesia.domain import Cell, Loading
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError, VerificationError
from amnesia.live.chat_form import chat_format
from amnesia.live.duet import Sampling, continued_rows, shifts
from amnesia.outputs.commands import save
from amnesia.outputs.proofs import check_edited
from amnesia.progress import SILENT
from support.gguf_edits import tiny, write
from support.tiny import tiny_direction
from support.tiny_text import save_tiny_live
from support.tracker import Silent

PROMPTS = ("the capital of Japan is", "Once upon a time", "who is Michael Jordan")
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant:"
EDITS = EntityEdits("Japan", (ColumnEdit(Cell(2, 9), 0.3), tiny_direction(1), tiny_direction(0, multiplier=0.25)))


@functools.lru_cache(2)  # Tests do not write into a folder twice.
def loaded(folder: Path, dtype: torch.dtype):
    """The model in a folder, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def plainly(
    folder: Path, message: str, n: int, *, chat: bool = False, dtype: torch.dtype = torch.float32, **drawn: float
) -> list[int]:
    """What transformers alone make of a message, token by token, without the end."""
    model, tokenizer = loaded(folder, dtype)
    if chat:
        row = [{"role": "user", "content": message}]
        given = tokenizer.apply_chat_template(row, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        given = tokenizer(message, return_tensors="pt")
    ends = sorted({tokenizer.eos_token_id, *tokenizer.all_special_ids})
    model.generation_config = GenerationConfig()
    config = GenerationConfig(do_sample=bool(drawn), max_new_tokens=n, eos_token_id=ends, pad_token_id=0, **drawn)
    made = model.generate(**given, generation_config=config)[0, given["input_ids"].shape[1] :].tolist()
    return made[: next((place for place, token in enumerate(made) if token in ends), len(made))]


def both(duet, text, n=20, **drawn):
    """The token ids of both answers."""
    sampling = Sampling(n, **drawn)
    return [list(row) for voice in duet.voices for row in continued_rows(voice, text, sampling, lambda rows: None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "dtype", "computed"),
    [
        pytest.param("llama", torch.float32, torch.float32, marks=pytest.mark.exhaustive),
        ("llama", torch.bfloat16, torch.bfloat16),
        ("gemma2", torch.bfloat16, torch.float32),
        ("gpt2", torch.float32, torch.float32),
        ("lfm2", torch.bfloat16, torch.float32),
    ],
)
def test_both_answers_are_those_of_two_plain_generations(tmp_path, model_type, dtype, computed):
    model = save_tiny_live(tmp_path / "m", model_type, dtype=dtype)
    save(model, EDITS, tmp_path / "out")
    loading = Loading(dtype=str(computed).removeprefix("torch."))
    duet = open_duet(str(model), str(tmp_path / "out"), (), SILENT, loading)
    assert len(duet.voices) == 1
    differ = 0
    for prompt in PROMPTS:
        expected = [plainly(folder, prompt, 20, dtype=computed) for folder in (model, tmp_path / "out")]
        assert both(duet, prompt) == expected
        differ += expected[0] != expected[1]
    assert differ
    direct = open_duet(str(model), None, (EDITS,), SILENT, loading)
    assert [both(direct, prompt) for prompt in PROMPTS] == [both(duet, prompt) for prompt in PROMPTS]


@pytest.mark.slow
def test_a_chat_template_is_used_as_transformers_do(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    save(model, EDITS, tmp_path / "out")
    duet = open_duet(str(model), str(tmp_path / "out"), (), SILENT)
    form = chat_format(duet.voices[0].live.tokenizer)
    for prompt in PROMPTS:
        expected = [plainly(folder, prompt, 20, chat=True) for folder in (model, tmp_path / "out")]
        assert both(duet, form(prompt)) == expected


def test_strength_0_is_the_model_itself_1_the_edit_and_more_goes_on_from_there(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    duet = open_duet(str(model), None, (EDITS,), SILENT)
    before, after = both(duet, PROMPTS[0])
    assert both(duet.at(0.0), PROMPTS[0]) == [before, before]
    twice = [
        EntityEdits(
            "Japan",
            (ColumnEdit(Cell(2, 9), -0.4), tiny_direction(1, multiplier=-3.0), tiny_direction(0, multiplier=-0.5)),
        )
    ]
    save(model, twice, tmp_path / "twice")
    assert both(duet.at(2.0), PROMPTS[0]) == [before, plainly(tmp_path / "twice", PROMPTS[0], 20)]
    assert after != before


def test_texts_are_shown_as_they_grow(tmp_path):
    duet = open_duet(str(save_tiny_live(tmp_path / "m")), None, (EDITS,), SILENT)
    seen = []
    answers = duet.answer([PROMPTS[0]], Sampling(8), lambda texts: seen.append(tuple(texts)))
    assert len(seen) >= 8 and seen[-1] == answers
    assert all(len(row[0]) <= len(answers[0]) for row in seen)


def test_drawing_is_the_same_with_the_same_seed_and_leaves_the_callers_numbers_alone(tmp_path):
    duet = open_duet(str(save_tiny_live(tmp_path / "m")), None, (EDITS,), SILENT)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (duet.answer([PROMPTS[0]], Sampling(20, 1.0, seed)) for seed in (3, 3, 4))
    assert torch.rand(1) == expected
    assert first == again != other


@pytest.mark.slow
def test_each_answer_is_drawn_as_a_generation_of_its_own_would(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    save(model, EDITS, tmp_path / "out")
    duet = open_duet(str(model), str(tmp_path / "out"), (), SILENT)
    differ = 0
    for seed, prompt in enumerate(PROMPTS, start=3):
        expected = []
        for folder in (model, tmp_path / "out"):
            torch.manual_seed(seed)
            expected.append(plainly(folder, prompt, 20, temperature=0.7, top_k=0))
        assert both(duet, prompt, temperature=0.7, seed=seed) == expected
        differ += expected[0] != expected[1]
        # What equal models answer differs by nothing.
        assert both(duet.at(0.0), prompt, temperature=0.7, seed=seed) == [expected[0]] * 2
    assert differ


def test_a_model_without_a_manifest_is_loaded_beside_the_first(tmp_path):
    model, other = save_tiny_live(tmp_path / "m"), save_tiny_live(tmp_path / "o", "gpt2")
    duet = open_duet(str(model), str(other), (), SILENT)
    answers = [
        row for voice in duet.voices for row in continued_rows(voice, PROMPTS[0], Sampling(9), lambda rows: None)
    ]
    assert [list(row) for row in answers] == [plainly(folder, PROMPTS[0], 9) for folder in (model, other)]
    with pytest.raises(InputError, match="the strength cannot be changed"):
        duet.at(2.0)


@pytest.mark.slow
def test_an_edit_of_experts_is_loaded_beside_the_first(tmp_path):
    model = save_tiny_live(tmp_path / "m", "mixtral")
    save(
        model,
        EntityEdits("Japan", tuple(ColumnEdit(Cell(1, n, e), -9.0) for n in range(9) for e in range(4))),
        tmp_path / "out",
    )
    duet = open_duet(str(model), str(tmp_path / "out"), (), SILENT)
    assert len(duet.voices) == 2
    expected = [plainly(folder, PROMPTS[0], 9) for folder in (model, tmp_path / "out")]
    assert [
        list(row) for voice in duet.voices for row in continued_rows(voice, PROMPTS[0], Sampling(9), lambda _: None)
    ] == expected


@pytest.mark.parametrize("format", ["safetensors", "adapter"])
def test_an_output_of_another_model_is_refused(tmp_path, format):
    model = save_tiny_live(tmp_path / "m")
    other = save_tiny_live(tmp_path / "other", dtype=torch.bfloat16)
    save(model, EDITS, tmp_path / "out", format=format)
    assert open_duet(str(model), str(tmp_path / "out"), (), SILENT).strength == 1.0
    with pytest.raises(InputError, match="was made of .*whose .* is not that of .*other"):
        open_duet(str(other), str(tmp_path / "out"), (), SILENT)


@pytest.mark.slow
def test_edits_on_top_of_each_other_are_all_heard(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    save(model, EDITS, tmp_path / "one")
    save(tmp_path / "one", EntityEdits("Peru", (ColumnEdit(Cell(0, 5), 4.0),)), tmp_path / "two")
    for base in (model, tmp_path / "one"):
        duet = open_duet(str(base), str(tmp_path / "two"), (), SILENT)
        assert both(duet, PROMPTS[1]) == [plainly(folder, PROMPTS[1], 20) for folder in (base, tmp_path / "two")]


@pytest.mark.exhaustive
@pytest.mark.real
def test_the_real_model_answers_as_its_files_do(tmp_path, smollm2, smollm2_live):
    from amnesia.live.duet import Duet, Voice, changes_of
    from amnesia.weights.checkpoint import edited_columns
    from amnesia.weights.plan import plan_edits

    edits = EntityEdits("some cells", tuple(ColumnEdit(Cell(1, neuron), -4.0) for neuron in range(0, 1536, 12)))
    save(smollm2.folder, edits, tmp_path / "out")
    columns = tuple(edited_columns(smollm2.checkpoint, plan_edits(smollm2.checkpoint, (edits,))))
    duet = Duet((Voice(smollm2_live, changes_of(columns, smollm2_live)),))
    for prompt in ("Fact: Steve Jobs is the founder of", "The capital of France is"):
        expected = [plainly(folder, prompt, 16) for folder in (smollm2.folder, tmp_path / "out")]
        assert expected[0] != expected[1]
        assert both(duet, prompt, 16) == expected


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "adapter"])
def test_an_output_whose_weights_were_changed_afterwards_is_not_shown_as_its_manifest_says(tmp_path, form):
    model = save_tiny_live(tmp_path / "m")
    save(model, EDITS, tmp_path / "out", format=form)
    for path in (tmp_path / "out").glob("*model*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if "layers.1.mlp.down_proj" in name]:
            tensors[name][0, 0] += 1
        save_file(tensors, path, {"format": "pt"})
    tracker = Silent()
    duet = open_duet(str(model), str(tmp_path / "out"), (), tracker)
    assert any("is not what its amnesia.json says" in x and "loaded as a second model" in x for x in tracker.lines)
    first, second = (voice.live.model for voice in duet.voices)
    assert first is not second
    if form == "safetensors":
        assert both(duet, PROMPTS[0]) == [plainly(folder, PROMPTS[0], 20) for folder in (model, tmp_path / "out")]


def test_of_edits_on_top_of_each_other_the_newest_says_what_a_tensor_is(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    save(model, EDITS, tmp_path / "one")
    save(tmp_path / "one", EntityEdits("Jordan", (ColumnEdit(Cell(1, 3)),)), tmp_path / "two")
    check_edited(tmp_path / "two")
    for path in (tmp_path / "one").glob("model*.safetensors"):
        (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VerificationError, match=r"is not the one that amnesia\.json declares"):
        check_edited(tmp_path / "two")


def test_an_edited_gguf_is_compared_with_its_manifest_by_its_tensors(tmp_path):
    source = tiny(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0)
    write(source, tmp_path / "out", ColumnEdit(Cell(0, 9)))
    check_edited(tmp_path / "out")
    (tmp_path / "out" / "m.gguf").write_bytes(source.read_bytes())
    with pytest.raises(VerificationError, match=r"blk\.0\.ffn_.*amnesia verify"):
        check_edited(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_shifts_are_those_between_the_states_of_two_plain_models(tmp_path, model_type):
    model = save_tiny_live(tmp_path / "m", model_type)
    save(model, EDITS, tmp_path / "out")
    (voice,) = open_duet(str(model), str(tmp_path / "out"), (), SILENT).voices
    tokens, found = shifts(voice, PROMPTS[0], 100)
    tokenizer = AutoTokenizer.from_pretrained(model)
    given = tokenizer(PROMPTS[0], return_tensors="pt")
    assert "".join(tokens) == PROMPTS[0] and len(tokens) == given["input_ids"].shape[1]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(**given, output_hidden_states=True)
        for folder in (model, tmp_path / "out")
    )
    # The last of these states has gone through the final norm, which the residual stream has not.
    pairs = list(zip(before.hidden_states, after.hidden_states, strict=True))[1:-1]
    expected = torch.stack([((b - a).norm(dim=-1) / a.norm(dim=-1))[0] for a, b in pairs]).double()
    torch.testing.assert_close(found[:-1], expected.detach(), rtol=1e-4, atol=1e-6)
    assert found[-1].min() > 0
    torch.testing.assert_close(shifts(voice, PROMPTS[0], 2)[1], found[:, :2], rtol=1e-4, atol=1e-6)
    assert not shifts(replace(voice, strength=0.0), PROMPTS[0], 9)[1].any()
