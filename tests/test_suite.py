"""Tests and documents themselves: no test needs another, oracles share no code with what they judge, links lead on."""

import ast
import re

import pytest

from support.folders import ROOT

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


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_imports_another_or_needs_what_lies_beside_the_repository(path):
    assert not {name for name in imported(path) if name.startswith("test_")}
    assert not re.search(r"ROOT\.parent|parents\[[3-9]\]", path.read_text(encoding="utf-8"))


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
