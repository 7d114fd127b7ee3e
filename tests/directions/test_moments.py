"""Moments against plain sums, and what is kept of them."""

import errno
import math
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from amnesia.directions.bystanders import MomentSettings, bystanders_of, vocabulary_rows
from amnesia.directions.moments import early_layers, moments_of
from amnesia.directions.moments_file import MomentsFile
from amnesia.directions.response import response_of
from amnesia.directions.samples import own_text, weights_digest
from amnesia.errors import InputError, NumericalError
from amnesia.live.model import hooks
from support.few_moments import SMALL
from support.tiny_text import tiny_live

pytestmark = pytest.mark.usefixtures("few_texts")


@pytest.fixture(scope="module")
def moments(live):
    return moments_of(live, (0, 1), settings=SMALL)


@pytest.fixture(scope="module")
def kept(live, tmp_path_factory):
    """The file in which the moments are kept."""
    folder = tmp_path_factory.mktemp("kept")
    moments_of(live, (0, 1), folder, SMALL)
    (file,) = folder.glob("moments-*.safetensors")
    return file


class TestMoments:
    def test_names_and_vocabulary_can_be_taken_out(self, live, moments):
        token = moments.vocabulary[5][-1]
        name = moments.names[0].name
        second, names = moments.without(live, 1, lambda other: other == name, frozenset({token}))
        assert len(names) == sum(other.name != name and other.is_last for other in moments.names)

        def moment(rows):
            total = torch.zeros(live.shape.d_mlp, live.shape.d_mlp, dtype=torch.float64)
            for row in rows:
                seen = {}
                with hooks(live, {1: lambda a, seen=seen: seen.update(a=a)}), torch.no_grad():
                    live.model(torch.tensor([row]))
                last = seen["a"][0, -1].double()
                total += torch.outer(last, last)
            return total

        own = [row for row in moments.vocabulary if row[-1] == token]
        assert own
        expected = moments.second[1].double() - moment(own) * SMALL.vocabulary / len(moments.vocabulary)
        keys = moments.name_keys[[i for i, other in enumerate(moments.names) if other.name == name], 1].double()
        expected -= keys.T @ keys * SMALL.names / len(moments.names)
        expected.diagonal().add_(SMALL.ridge * expected.diagonal().mean())
        assert torch.allclose(second, expected, atol=1e-8)

    @pytest.mark.slow
    def test_they_are_kept_for_this_model_and_these_settings(self, live, moments, tmp_path):
        first = moments_of(live, (0, 1), tmp_path, SMALL)
        assert torch.equal(first.second, moments.second)
        (file,) = tmp_path.glob("moments-*.safetensors")
        steps = []
        again = moments_of(live, (0, 1), tmp_path, SMALL, steps.append)
        assert steps == [] and torch.equal(again.second, first.second) and again.names == first.names
        moments_of(live, (0, 1), tmp_path, replace(SMALL, sampled=72))
        moments_of(live, (0, 1), tmp_path, replace(SMALL, answering=1))
        moments_of(tiny_live("llama", seed=4), (0, 1), tmp_path, SMALL)
        assert len(list(tmp_path.iterdir())) == 4
        file.unlink()
        file.write_bytes(b"damaged")
        assert torch.equal(moments_of(live, (0, 1), tmp_path, SMALL).second, first.second)

    @pytest.mark.slow
    def test_the_file_is_that_of_a_tokenizer_and_a_configuration(self, tmp_path):
        models = [tiny_live("llama", seed=3), tiny_live("llama", seed=3, bos=True)]
        models.append(tiny_live("llama", seed=3, bos=True, rms_norm_eps=0.1))
        for n, live in enumerate(models, 1):
            kept = moments_of(live, (0, 1), tmp_path, SMALL)
            assert len(list(tmp_path.iterdir())) == n
            assert torch.equal(kept.second, moments_of(live, (0, 1), None, SMALL).second)

    def test_how_the_model_likes_to_generate_changes_nothing(self, moments):
        live = tiny_live("llama", seed=3)
        own = live.model.generation_config
        own.update(repetition_penalty=1.5, min_p=0.9, num_beams=2, eos_token_id=[2, *range(100, 350)], use_cache=False)
        assert torch.equal(moments_of(live, (0, 1), None, SMALL).second, moments.second)
        assert live.model.generation_config is own

    @pytest.mark.parametrize("place", [0.2, 0.99])
    def test_one_other_byte_is_noticed(self, live, moments, kept, tmp_path, place):
        file = Path(copy(kept, tmp_path))
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 1
        file.unlink()
        file.write_bytes(content)
        assert torch.equal(moments_of(live, (0, 1), tmp_path, SMALL).second, moments.second)
        assert file.read_bytes() == Path(kept).read_bytes()

    def test_a_file_in_use_may_be_removed(self, live, moments, kept, tmp_path):
        file = Path(copy(kept, tmp_path))
        found = moments_of(live, (0, 1), tmp_path, SMALL)
        file.unlink()
        one, other = (each.without(live, 1, lambda name: False, frozenset())[0] for each in (found, moments))
        assert torch.equal(one, other)

    @pytest.mark.slow
    @pytest.mark.parametrize("damage", ["shape", "nan", "folder"])
    def test_what_is_kept_wrongly_is_made_again(self, live, moments, kept, tmp_path, damage):
        file = Path(copy(kept, tmp_path))
        tensors = load_file(file)
        file.unlink()
        if damage == "folder":  # Nothing can be kept there; the run goes on without.
            file.mkdir()
        else:
            second = tensors["second"]
            wrong = {"shape": second[:, :3].contiguous(), "nan": torch.full_like(second, math.nan)}[damage]
            save_file({**tensors, "second": wrong}, file)
        assert torch.equal(moments_of(live, (0, 1), tmp_path, SMALL).second, moments.second)
        assert torch.equal(moments_of(live, (0, 1), tmp_path, SMALL).second, moments.second)

    def test_large_matrices_are_made_in_blocks_of_their_upper_triangle(self, live, moments, tmp_path, monkeypatch):
        monkeypatch.setattr("amnesia.directions.moments._COLUMNS", 10)
        found = moments_of(live, (0, 1), tmp_path, SMALL)
        assert torch.equal(found.second, found.second.mT)
        assert torch.allclose(found.second, moments.second, atol=1e-6, rtol=1e-6)
        taken = [(lambda other: other == moments.names[0].name), frozenset({moments.vocabulary[5][-1]})]
        one, other = (each.without(live, 1, *taken)[0] for each in (found, moments))
        assert torch.equal(one, one.T) and torch.allclose(one, other, atol=1e-6, rtol=1e-6)

    def test_no_more_than_a_layer_is_mapped_at_a_time(self, live, tmp_path, monkeypatch):
        asked = []
        tensor = MomentsFile.tensor
        monkeypatch.setattr(MomentsFile, "tensor", lambda *given: asked.append(given[1:]) or tensor(*given))
        found = moments_of(live, (0, 1), tmp_path, SMALL)
        found.without(live, 1, lambda _: False, frozenset())
        assert asked[-1] == ("second", 1)
        # The whole is mapped once, to be looked at by those who ask for it, and nothing of it read.
        assert asked.count(("second",)) == 1 and {("second", 0), ("second", 1)} < {*asked}

    def test_where_there_is_no_room_for_a_file_they_stay_in_memory(self, live, moments, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("amnesia.directions.moments_file.new_file", full)
        found = moments_of(live, (0, 1), tmp_path, SMALL)
        assert found.file is None and torch.equal(found.second, moments.second)
        assert list(tmp_path.iterdir()) == []

    def test_activations_beyond_half_precision_stay_finite(self):
        live = tiny_live("llama", seed=3)
        with torch.no_grad():
            for layer in live.model.model.layers:
                layer.mlp.up_proj.weight *= 3e6
                layer.mlp.down_proj.weight /= 3e6
        found = moments_of(live, (0, 1), None, SMALL)
        assert found.name_keys.isfinite().all() and found.response.activations.isfinite().all()
        assert found.name_keys.abs().max() == torch.finfo(torch.float16).max

    def test_weights_in_several_places_are_refused(self):
        live = tiny_live("llama", seed=3)
        live.model.lm_head.to("meta")
        with pytest.raises(InputError, match="lies on cpu, meta: a direction needs all weights on one device"):
            moments_of(live, (0, 1), None, SMALL)

    def test_progress_counts_rows(self, live):
        settings = MomentSettings(sampled=24, length=6, vocabulary_size=20, answering=3)
        read, steps = bystanders_of(live, settings), []
        moments_of(live, (0,), settings=settings, progress=steps.append)
        # Own text is written and read, sentences and some of it for gradients, too; tokens would be many more.
        n_texts = 2 * len(read.beginnings) + 2 * len(read.sentences) + settings.answering
        assert sum(steps) == n_texts + len(read.vocabulary) + len(read.name_rows)
        assert min(steps) >= 0

    @pytest.mark.parametrize(("n_answering", "chosen"), [(0, []), (1, [0]), (3, [0, 2, 4]), (99, range(8))])
    def test_harm_is_told_by_sentences_and_some_of_the_text_that_the_model_writes(self, live, n_answering, chosen):
        settings = replace(SMALL, answering=n_answering)
        read = bystanders_of(live, settings)
        written = list(own_text(live, read.beginnings, read.n_following, weights_digest(live)))
        assert len(written) == 8
        found = moments_of(live, (0, 1), settings=settings).response
        expected = response_of(live, [*read.sentences, *(written[place] for place in chosen)], (0, 1))
        assert torch.equal(found.activations, expected.activations)
        assert torch.equal(found.gradients, expected.gradients)

    def test_sentences_are_cut_to_the_positions_of_the_model(self):
        live = tiny_live("gpt2", seed=3, n_positions=40)
        found = moments_of(live, (0, 1), None, replace(SMALL, length=4))
        assert found.second.isfinite().all() and len(found.response.gradients) > 0

    def test_a_vocabulary_may_have_gaps_and_unused_tokens(self, live):
        """Ids without a piece, as in tokenizers made of some GGUF files."""
        words = {"<unk>": 0, "The": 1, "story": 2, "of": 3, "<unused7>": 4, "sea": 7}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        gappy = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
        gappy.__class__ = type("Gappy", (PreTrainedTokenizerFast,), {"__len__": lambda self: 8})
        assert gappy.convert_ids_to_tokens([5, 7]) == [None, "sea"]
        rows = vocabulary_rows(replace(live, tokenizer=gappy), SMALL)
        assert sorted(row[-1] for row in rows) == [1, 2, 3, 7]

    def test_sampling_leaves_the_random_state_alone(self, live):
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        moments_of(live, (0,), settings=SMALL)
        assert torch.equal(torch.rand(3), expected)

    def test_behind_a_norm_a_bystander_counts_relative_to_what_the_layer_writes(self):
        live = tiny_live("gemma2", seed=3, bos=True)
        moments = moments_of(live, (0,), settings=SMALL)
        written = live.out_weight(0).double() @ moments.second[0].double() @ live.out_weight(0).double().T
        # Every one has mean square 1 there.
        assert (written.diagonal().mean()).item() == pytest.approx(1.0, rel=1e-3)

    @pytest.mark.parametrize(("n_layers", "expected"), [(2, 2), (6, 6), (18, 6), (30, 6), (80, 16)])
    def test_early_layers(self, n_layers, expected):
        assert early_layers(n_layers) == tuple(range(expected))


def test_a_model_whose_activations_overflow_is_named_and_nothing_of_it_is_kept(tmp_path):
    live = tiny_live("llama", seed=3)
    with torch.no_grad():
        live.model.model.layers[0].mlp.up_proj.weight.mul_(1e30)
    with pytest.raises(NumericalError, match="activations in layer 0"):
        moments_of(live, (0, 1), tmp_path, SMALL)
    assert not list(tmp_path.iterdir())
