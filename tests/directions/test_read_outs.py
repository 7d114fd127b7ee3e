"""Closed forms against what they must be by definition, and their answers against those of each text by itself."""

import math

import numpy as np
import pytest
import torch

from amnesia.choice.atoms import Name, change_by
from amnesia.choice.shown import BINS, answers_of
from amnesia.directions import bystanders
from amnesia.directions.keys import name_keys, token_texts, wordings
from amnesia.directions.moments import moments_of
from amnesia.directions.samples import own_text, weights_digest
from amnesia.directions.solve import Metric
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.facts.names import code_snippets, contrast_entities, foreign_sentences, name_wordings, neutral_texts
from amnesia.facts.relations import relation_templates
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import edited, hooks
from support.few_moments import SMALL, WHOLE
from support.tiny_text import tiny_live

pytestmark = pytest.mark.usefixtures("few_texts")


def spd(n, seed=0):
    root = torch.randn(n, 3 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / (3 * n) + 0.01 * torch.eye(n, dtype=torch.float64)


class TestReadOuts:
    def test_keys_of_other_groups_get_no_answer_and_bystanders_the_least(self):
        """The oracle solves the equations of Lagrange for each read-out: least uᵀCu where the keys are answered so."""
        c, keys = spd(12), torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        groups = ["a", "b", "a", "c"]
        for place, found in enumerate(Metric(c).apart(keys, groups)):
            chosen = [other for other in range(4) if other == place or groups[other] != groups[place]]
            k, n = keys[:, chosen], len(chosen)
            whole = torch.cat([torch.cat([2 * c, k], 1), torch.cat([k.T, torch.zeros(n, n)], 1)])
            wanted = torch.tensor([float(other == place) for other in chosen], dtype=torch.float64)
            u = torch.linalg.solve(whole, torch.cat([torch.zeros(12, dtype=torch.float64), wanted]))[:12]
            torch.testing.assert_close(found.u, u)
            assert found.leak == pytest.approx((u @ c @ u).item())
        with pytest.raises(torch.linalg.LinAlgError):
            Metric(c).apart(keys[:, [0, 0]], ["a", "b"])

    def test_answers_one_at_the_key_and_least_elsewhere(self):
        c, k = spd(12), torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (found,) = Metric(c).read_outs([k])
        assert (found.u @ k).item() == pytest.approx(1.0, abs=1e-12)
        assert found.leak == pytest.approx((found.u @ c @ found.u).item(), rel=1e-10)
        for seed in range(10, 30):
            other = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            other = found.u + 0.1 * (other - (other @ k) / (k @ k) * k)  # Still 1 at k.
            assert (other @ c @ other).item() > found.leak

    def test_one_cell_that_fires_alone_is_the_source_s_edit(self):
        k = torch.zeros(6, dtype=torch.float64)
        k[4] = 3.0
        found = Metric(torch.eye(6)).supports(k, (1,))[1]
        assert found.cells.tolist() == [4]
        assert found.u.tolist() == pytest.approx([1 / 3])

    def test_the_support_is_the_best_one_where_all_can_be_tried(self):
        import itertools

        for seed in range(5):
            c, k = spd(7, seed), torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            found = Metric(c).supports(k, (6,))[6]
            tried = []
            for cells in itertools.combinations(range(7), 6):
                at = torch.tensor(cells)
                tried.append(1 / (k[at] @ torch.linalg.solve(c[at][:, at], k[at])).item())
            assert found.leak == pytest.approx(min(tried), rel=1e-9)

    def test_fewer_cells_leak_more(self):
        c, k = spd(64), torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found = Metric(c).supports(k, (4, 8, 16, 32, 64, 100))
        assert sorted(found) == [4, 8, 16, 32]
        (dense,) = Metric(c).read_outs([k])
        leaks = [dense.leak, *(found[size].leak for size in (32, 16, 8, 4))]
        assert leaks == sorted(leaks) and leaks[0] < leaks[-1]
        assert all(found[size].cells.tolist() == sorted(set(found[size].cells.tolist())) for size in found)

    def test_cells_are_eliminated_by_what_their_removal_costs_in_each_round(self):
        """The oracle inverts the moments of the cells that are left anew in every round."""
        c, k = spd(90), torch.randn(90, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        metric, left = Metric(c), torch.arange(90)
        found = metric.supports(k, (1, 7, 40))
        for size in (40, 7, 1):
            while len(left) > size:
                inverse = torch.linalg.inv(c[left][:, left])
                cost = (inverse @ k[left]).square() / inverse.diagonal()
                n = max(size, int(0.8 * len(left)))
                left = left[cost.argsort(descending=True)[:n].sort().values]
            u = torch.linalg.solve(c[left][:, left], k[left])
            assert torch.equal(found[size].cells, left)
            torch.testing.assert_close(found[size].u, u / (u @ k[left]))
        # What was factored serves the next key.
        other = torch.randn(90, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        again, alone = metric.supports(other, (7,))[7], Metric(c).supports(other, (7,))[7]
        assert torch.equal(again.cells, alone.cells) and torch.equal(again.u, alone.u)

    def test_at_equal_forgetting_a_direction_costs_bystanders_a_fraction_of_what_the_best_cell_does(self):
        # Ten cells fire together at the entity, and each of them for many others, as 200 patterns share 96 cells.
        n_cells, n_patterns, shown = 96, 200, 4
        generator = torch.Generator().manual_seed(0)
        patterns = torch.zeros(n_patterns, n_cells, dtype=torch.float64)
        for row in patterns:
            at = torch.randperm(n_cells, generator=generator)[:10]
            row[at] = 0.5 + torch.rand(10, generator=generator, dtype=torch.float64)
        key, others = patterns[0], patterns[1:]

        def bystanders(n):
            """Activations (n, n_cells) of texts that show a few other patterns each, with some noise."""
            which = torch.rand(n, len(others), generator=generator).topk(shown).indices
            return others[which].sum(1) + 0.1 * torch.randn(n, n_cells, generator=generator, dtype=torch.float64)

        seen, unseen = bystanders(4000), bystanders(1000)
        second = seen.T @ seen / len(seen)
        weight = torch.randn(48, n_cells, generator=generator, dtype=torch.float64)
        write = weight @ key

        def forgotten(change):
            """Share of what is written about the entity that `change` (d_model, n_cells) of the weights takes away."""
            return -((change @ key) @ write / (write @ write)).item()

        def cost(change):
            """Mean square of what it does to the writes about bystanders that no moment has seen."""
            return (unseen @ change.T).square().sum(1).mean().item()

        # Each column, scaled until as much is forgotten as the direction makes forget.
        single = []
        for cell in range(n_cells):
            gone = torch.zeros_like(weight)
            gone[:, cell] = -weight[:, cell]
            if forgotten(gone) > 0:
                single.append(gone / forgotten(gone))
        (dense,) = Metric(second).read_outs([key])
        sparse = Metric(second).supports(key, (16,))[16]
        for read_out, share in ((dense, 0.05), (sparse, 0.1)):
            change = torch.zeros_like(weight)
            change[:, read_out.cells] = -torch.outer(write, read_out.u)
            assert [forgotten(other) for other in (change, *single)] == pytest.approx([1.0] * (1 + len(single)))
            assert cost(change) < share * min(map(cost, single))
            # It leaves nothing of the write, where the column leaves what the other cells wrote.
            assert (change @ key + write).norm() < 1e-9 * write.norm()
            assert min(((other @ key + write).norm() / write.norm()).item() for other in single) > 0.5

    def test_moments_that_are_not_positive_definite_are_an_error(self):
        with pytest.raises(torch.linalg.LinAlgError):
            Metric(-torch.eye(3)).read_outs([torch.ones(3)])


class TestKeys:
    @pytest.mark.slow
    def test_a_key_is_the_mean_over_wordings(self, live):
        keys = name_keys(live, "Japan", (0, 1), 2)
        prefixes = set()
        for text in wordings():
            ids = live.tokenizer(text.replace("{entity}", "Japan"), return_offsets_mapping=True)
            end = text.index("{entity}") + len("Japan") - 1
            (last,) = [i for i, (a, b) in enumerate(ids["offset_mapping"]) if a <= end < b]
            if last > 0:  # The first token of a row is a sink of attention.
                prefixes.add(tuple(ids["input_ids"][: last + 1]))
        seen = []
        for prefix in prefixes:
            with hooks(live, {1: lambda a: seen.append(a[0, -1])}), torch.no_grad():
                live.model(torch.tensor([prefix]))
        assert torch.allclose(keys[0][1], torch.stack(seen).mean(0), atol=1e-5)

    def test_no_held_out_wording_is_used(self):
        held_out = {text for each in relation_templates().values() for text in each.held_out}
        assert len(wordings()) > 200 and not held_out & {*wordings()}


@pytest.mark.slow
def test_answers_are_those_of_each_text_by_itself(live, monkeypatch):
    for name, every in WHOLE.items():
        monkeypatch.setattr(bystanders, name, every)
    moments = moments_of(live, (0, 1), settings=SMALL)
    japan = Name(live, "Japan", moments, lambda name: name in ("Japan", "Peru"))
    atoms = {atom.place: japan.sparse(atom, (8,))[8] for atom in japan.atoms(2)}
    edits = [atoms[place].edit(0.0) for place in ((1, 1), (0, 0))]
    found = answers_of(japan, edits)
    assert answers_of(japan, [ColumnEdit(Cell(0, 1))]) is None
    names = set(contrast_entities()) - {"Japan", "Peru"}
    own, others, text = ({edit: [] for edit in edits} for _ in range(3))

    def answers(text, edits=edits):
        """Of each edit to all tokens of a text, which has a pass of its own, and the text's tokens."""
        row = live.tokenizer(text, return_offsets_mapping=True) if isinstance(text, str) else {"input_ids": text}
        seen = {}
        with hooks(live, {n: lambda a, n=n: seen.update({n: a[0]}) for n in (0, 1)}), torch.no_grad():
            live.model(torch.tensor([row["input_ids"]]))
        for edit in edits:
            yield edit, seen[edit.layer][:, list(edit.columns)] @ torch.tensor(edit.read.array.copy()), row

    for wording in wordings():
        end = wording.index("{entity}") + len("Japan") - 1
        for edit, values, row in answers(wording.replace("{entity}", "Japan")):
            (last,) = [i for i, (a, b) in enumerate(row["offset_mapping"]) if a <= end < b]
            place = last - edit.token
            if place == 0:  # A sink of attention.
                continue
            own[edit].append((tuple(row["input_ids"][: place + 1]), values[place].item()))
    for name in sorted(names)[::30]:
        for wording in name_wordings():
            for edit, values, _ in answers(wording.replace("{entity}", name)):
                if len(values) > 1:
                    others[edit].append(values[-1].item())
    read = bystanders.bystanders_of(live, SMALL)
    written = list(own_text(live, read.beginnings, read.n_following, weights_digest(live)))
    assert len(written) == SMALL.sampled / SMALL.length <= SMALL.answering
    for sentence in (*neutral_texts("search"), *foreign_sentences(), *code_snippets(), *map(list, written)):
        for edit, values, _ in answers(sentence):
            text[edit] += values[1:-1].tolist()
    rows = {(row.layer, row.token, row.group): row for row in found.rows}
    assert len(rows) == len(found.rows) == 6
    for edit in edits:
        place = (edit.layer, edit.token)
        once = list(dict(own[edit]).values())
        assert np.mean(once) == pytest.approx(1.0, abs=1e-4)
        for group, values in (("entity", once), ("text", text[edit])):
            row, counts = rows[*place, group], np.histogram(values, BINS, (found.low, found.high))[0]
            assert row.n == sum(row.counts) == len(values) and len(row.counts) == BINS
            # Rounding may take some to the next bin.
            assert np.abs(counts - row.counts).sum() <= max(4, 0.02 * len(values))
            assert row.percentile_99 == pytest.approx(np.quantile(np.abs(values), 0.99), rel=1e-3)
            assert row.median == pytest.approx(np.median(np.abs(values)), rel=0.02)
        row = rows[*place, "names"]
        # A direction of a token before the last is asked at all tokens of other names.
        kept = [other for other in moments.names if other.name in names and (other.is_last or edit.token)]
        assert row.n == sum(row.counts) == len(kept)
        assert found.low - 1e-3 <= min(others[edit] + text[edit]) and max(others[edit] + once) <= found.high + 1e-3
        assert edit.token or row.median == pytest.approx(np.median(np.abs(others[edit])), rel=0.5)


def test_tokens_of_a_name_have_their_texts():
    live = tiny_live("llama", bos=True)
    ids = live.tokenizer(" Steve Jobs", add_special_tokens=False)["input_ids"]
    assert token_texts(live, "Steve Jobs", len(ids)) == tuple(live.tokenizer.decode([token]) for token in ids[::-1])


@pytest.mark.slow
def test_layers_that_differ_in_width_have_atoms_of_their_own_width():
    live = tiny_live("gemma4_text", seed=3)
    moments = moments_of(live, (1, 2), settings=SMALL)
    for layer, width in ((1, 48), (2, 96)):
        second, names = moments.without(live, layer, lambda other: other == "Japan", frozenset())
        assert (second.shape, names.shape[1]) == ((width, width), width)
        assert torch.linalg.eigvalsh(second).min() > 0
    atoms = Name(live, "Japan", moments, lambda other: other == "Japan").atoms(1)
    assert {(atom.layer, atom.size) for atom in atoms} == {(1, 48), (2, 96)}
    for atom in atoms:
        with edited(live, [atom.edit(-1.0)]):
            assert answer_logprobs(live, [("Japan", "is")])
        assert (
            Name(live, "Japan", moments, lambda other: other == "Japan").sparse(atom, (8,))[8].edit(-1.0).columns[-1]
            < atom.size
        )


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_an_atom_taken_away_leaves_what_any_name_gets(model_type):
    live = tiny_live(model_type, seed=3)
    moments = moments_of(live, (0, 1), settings=SMALL)
    name = Name(live, "Japan", moments, lambda other: other == "Japan")
    atoms = name.atoms(3)
    assert {atom.layer for atom in atoms} == {0, 1}
    assert [atom.shift for atom in atoms] == sorted((atom.shift for atom in atoms), reverse=True)
    for dense in atoms:
        found = name.sparse(dense, (1, 8))
        for atom in (dense, found[8]):
            edit = atom.edit(0.0)
            assert len(edit.columns) == atom.size
            weight = live.out_weight(atom.layer)
            delta = torch.zeros_like(weight)
            delta[:, list(edit.columns)] = -torch.outer(
                torch.tensor(edit.write.array.copy()), torch.tensor(edit.read.array.copy())
            )
            # At the key, W'k = W(k − (k − n)) = Wn.
            mean = weight @ atom.key - atom.write
            assert torch.allclose((weight + delta) @ atom.key, mean, atol=1e-4 * float(weight.norm()))
        assert change_by([dense], -1.0).harm == pytest.approx(4 * change_by([dense], 0.0).harm, rel=1e-5)
        assert math.isfinite(dense.shift)
        # One cell is the source's form: its column, scaled.
        (cell,) = found[1].read_out.cells.tolist()
        assert found[1].edit(-1.0) == ColumnEdit(Cell(dense.layer, cell), -1.0)
        assert torch.allclose(found[1].write * found[1].read_out.u.float(), live.out_weight(dense.layer)[:, cell])
