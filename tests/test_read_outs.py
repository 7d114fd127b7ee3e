"""Closed forms against what they must be by definition, and moments against plain sums."""

import math
from dataclasses import replace

import pytest
import torch

from amnesia.choice.atoms import atoms_of
from amnesia.directions.keys import name_keys, wordings
from amnesia.directions.moments import MomentSettings, early_layers, moments_of
from amnesia.directions.solve import read_outs
from amnesia.model import hooks
from amnesia.relations import RELATION_TEMPLATES
from tiny_text import tiny_live

SMALL = MomentSettings(sampled=64, length=8, vocabulary_size=40)


def spd(n, seed=0):
    root = torch.randn(n, 3 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / (3 * n) + 0.01 * torch.eye(n, dtype=torch.float64)


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


@pytest.fixture(scope="module")
def moments(live):
    return moments_of(live, (0, 1), settings=SMALL)


class TestReadOuts:
    def test_answers_one_at_the_key_and_least_elsewhere(self):
        c, k = spd(12), torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = read_outs(c, k, ())[12]
        assert (found.u @ k).item() == pytest.approx(1.0, abs=1e-12)
        assert found.leak == pytest.approx((found.u @ c @ found.u).item(), rel=1e-10)
        for seed in range(10, 30):
            other = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            other = found.u + 0.1 * (other - (other @ k) / (k @ k) * k)  # Still 1 at k.
            assert (other @ c @ other).item() > found.leak

    def test_one_cell_that_fires_alone_is_the_source_s_edit(self):
        k = torch.zeros(6, dtype=torch.float64)
        k[4] = 3.0
        found = read_outs(torch.eye(6, dtype=torch.float64), k, (1,))[1]
        assert found.cells.tolist() == [4]
        assert found.u.tolist() == pytest.approx([1 / 3])

    def test_the_support_is_the_best_one_where_all_can_be_tried(self):
        import itertools

        for seed in range(5):
            c, k = spd(7, seed), torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            found = read_outs(c, k, (6,))[6]
            tried = []
            for cells in itertools.combinations(range(7), 6):
                at = torch.tensor(cells)
                tried.append(1 / (k[at] @ torch.linalg.solve(c[at][:, at], k[at])).item())
            assert found.leak == pytest.approx(min(tried), rel=1e-9)

    def test_fewer_cells_leak_more(self):
        c, k = spd(64), torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found = read_outs(c, k, (4, 8, 16, 64, 100))
        assert sorted(found) == [4, 8, 16, 64]
        leaks = [found[size].leak for size in (64, 16, 8, 4)]
        assert leaks == sorted(leaks) and leaks[0] < leaks[-1]
        assert all(found[size].cells.tolist() == sorted(set(found[size].cells.tolist())) for size in found)

    def test_moments_that_are_not_positive_definite_are_an_error(self):
        with pytest.raises(torch.linalg.LinAlgError):
            read_outs(-torch.eye(3), torch.ones(3), ())


class TestMoments:
    def test_names_and_vocabulary_can_be_taken_out(self, live, moments):
        token = moments.vocabulary[5][-1]
        name = moments.names[0]
        second, names = moments.without(live, 1, lambda other: other == name, frozenset({token}))
        assert len(names) == sum(other != name for other in moments.names)

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
        keys = moments.name_keys[[i for i, other in enumerate(moments.names) if other == name], 1].double()
        expected -= keys.T @ keys * SMALL.names / len(moments.names)
        expected.diagonal().add_(SMALL.ridge * expected.diagonal().mean())
        assert torch.allclose(second, expected, atol=1e-8)

    def test_they_are_kept_for_this_model_and_these_settings(self, live, moments, tmp_path):
        first = moments_of(live, (0, 1), tmp_path, SMALL)
        assert torch.equal(first.second, moments.second)
        (file,) = tmp_path.glob("moments-*.safetensors")
        steps = []
        again = moments_of(live, (0, 1), tmp_path, SMALL, steps.append)
        assert steps == [] and torch.equal(again.second, first.second) and again.names == first.names
        moments_of(live, (0, 1), tmp_path, replace(SMALL, seed=1))
        moments_of(tiny_live("llama", seed=4), (0, 1), tmp_path, SMALL)
        assert len(list(tmp_path.iterdir())) == 3
        file.write_bytes(b"damaged")
        assert torch.equal(moments_of(live, (0, 1), tmp_path, SMALL).second, first.second)

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


class TestKeys:
    def test_a_key_is_the_mean_over_wordings(self, live):
        keys = name_keys(live, "Japan", (0, 1), 2)
        prefixes = set()
        for text in wordings():
            ids = live.tokenizer(text.replace("{entity}", "Japan"), return_offsets_mapping=True)
            end = text.index("{entity}") + len("Japan") - 1
            (last,) = [i for i, (a, b) in enumerate(ids["offset_mapping"]) if a <= end < b]
            prefixes.add(tuple(ids["input_ids"][: last + 1]))
        seen = []
        for prefix in prefixes:
            with hooks(live, {1: lambda a: seen.append(a[0, -1])}), torch.no_grad():
                live.model(torch.tensor([prefix]))
        assert torch.allclose(keys[0][1], torch.stack(seen).mean(0), atol=1e-5)

    def test_no_held_out_wording_is_used(self):
        held_out = {text for each in RELATION_TEMPLATES.values() for text in each.held_out}
        assert len(wordings()) > 200 and not held_out & {*wordings()}


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_an_atom_taken_away_leaves_what_any_name_gets(model_type):
    live = tiny_live(model_type, seed=3)
    moments = moments_of(live, (0, 1), settings=SMALL)
    atoms = atoms_of(live, "Japan", moments, lambda name: name == "Japan", 3, (8,))
    assert {atom.layer for atom in atoms} == {0, 1}
    assert [atom.shift for atom in atoms] == sorted((atom.shift for atom in atoms), reverse=True)
    for atom in atoms:
        for size in (8, live.shape.d_mlp):
            edit = atom.edit(0.0, size)
            weight = live.out_weight(atom.layer)
            delta = torch.zeros_like(weight)
            delta[:, list(edit.columns)] = -torch.outer(
                torch.tensor(edit.write.array.copy()), torch.tensor(edit.read.array.copy())
            )
            # At the key, W'k = W(k − (k − n)) = Wn.
            mean = weight @ atom.key - atom.write
            assert torch.allclose((weight + delta) @ atom.key, mean, atol=1e-4 * float(weight.norm()))
        assert atom.leak(-1.0, 8) == pytest.approx(4 * atom.leak(0.0, 8))
        assert atom.leak(0.0, 8) >= atom.leak(0.0, live.shape.d_mlp) > 0
        assert math.isfinite(atom.shift)
