"""Tests and documents themselves: no test needs another, oracles share no code with what they judge, links lead on."""

import ast
import re
import tomllib

from amnesia.architectures import LAYOUTS
from support.folders import ROOT
from support.further import N_OF_MANY, further, shape_of

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def imported(path):
    """Top-level packages and modules that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def test_no_test_imports_another_or_needs_what_lies_beside_the_repository():
    assert len(TESTS) > 100
    for path in TESTS:
        assert not {name for name in imported(path) if name.startswith("test_")}, path
        assert not re.search(r"ROOT\.parent|parents\[[3-9]\]", path.read_text(encoding="utf-8")), path


def test_oracles_share_no_code_with_the_package():
    oracles = sorted((ROOT / "tests" / "oracles").glob("*.py"))
    assert oracles
    assert not {path.name for path in oracles if imported(path) & {"amnesia", "support"}}


def test_links_between_documents_lead_to_files():
    folders = (ROOT / name for name in (".github", "recipes", "tests"))
    documents = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*.md"))]
    links = {
        (path, target)
        for path in documents
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target)
    }
    assert (ROOT / "README.md", "recipes/README.md") in links
    assert [(path.name, target) for path, target in links if not (path.parent / target).exists()] == []


def test_the_fast_tier_tries_one_architecture_of_each_shape_and_some_of_many_types():
    cases = [("rows", {"source": name, "dtype": dtype}) for name in LAYOUTS for dtype in ("f32", "bf16")]
    left_out = {*further(cases)}
    tried = [case["source"] for index, (_, case) in enumerate(cases) if index not in left_out]
    assert tried[::2] == tried[1::2], "what is no architecture is tried in full"
    assert sorted(map(shape_of, tried[::2])) == sorted({*map(shape_of, LAYOUTS)})
    assert {"llama", "gemma2", "gpt2", "gpt_neox", "mixtral", "lfm2"} < {*tried}
    # Each test has its own: one that leaves llama out tries another in its place.
    assert [*further([("a", {"model_type": "qwen2"}), ("a", {"model_type": "qwen3"}), ("b", {"x": "qwen3"})])] == [1]
    kinds = [("types", {"kind": f"Q{n}", "multiplier": m}) for n in range(20) for m in (-1.0, 0.0)]
    kept = [kinds[index][1]["kind"] for index in range(len(kinds)) if index not in {*further(kinds)}]
    assert (kept[0], kept[-1], len(kept)) == ("Q0", "Q19", 2 * N_OF_MANY)
    assert [*further(kinds[: 2 * N_OF_MANY])] == []


def test_the_fast_tier_of_the_guide_is_that_of_the_script():
    (found,) = re.findall(r"fast\) marker=\" -m '(.*)'\"", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert f'`pytest -m "{found}"`' in (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known = {line.partition(":")[0] for line in settings["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(found.removeprefix("not ").split(" and not ")) <= known
