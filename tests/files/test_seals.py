"""Files that carry a hash of themselves: any change shows, and what was written is still what it was."""

import io
import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from amnesia.files.seals import (
    PAGE_SEAL,
    is_sealed_drawing,
    is_sealed_json,
    is_sealed_page,
    report_seal,
    sealed_drawing,
    sealed_json,
    sealed_page,
)

PAGE = f"<html><head>{report_seal(b'[1]')}\n{PAGE_SEAL}<title>é</title></head><body>x</body></html>"


def drawn(suffix):
    buffer = io.BytesIO()
    Figure().savefig(buffer, format=suffix)
    return buffer.getvalue()


def test_json_is_known_by_its_own_hash():
    content = sealed_json({"name": "é", "values": [1.0, 0.5]})
    assert is_sealed_json(content)
    assert {**json.loads(content), "sha256": None} == {"name": "é", "values": [1.0, 0.5], "sha256": None}
    for other in (
        b"",
        b"[1]",
        b"[" * 100_000,
        b"\xff",
        b'{"sha256": 1}',
        content + b"\n",
        content.replace(b"1.0", b"2.0"),
    ):
        assert not is_sealed_json(other)


def test_a_page_is_known_by_its_own_hash_and_proves_its_report():
    content = sealed_page(PAGE).encode()
    assert is_sealed_page(content) and is_sealed_page(content, b"[1]") and not is_sealed_page(content, b"[2]")
    for other in (b"", PAGE.encode(), content.replace(b"body>x", b"body>y"), content + b"<p>", content[:-1]):
        assert not is_sealed_page(other) and not is_sealed_page(other, b"[1]")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_drawing_is_known_by_its_own_hash_and_looks_the_same(suffix):
    plain = drawn(suffix)
    content = sealed_drawing(plain)
    assert is_sealed_drawing(content) and not is_sealed_drawing(plain)
    assert not is_sealed_drawing(content[:100] + b"\1" + content[101:]) and not is_sealed_drawing(content + b"\n")
    assert not any(is_sealed_drawing(other) for other in (b"", b"mine", b"<svg></svg>", sealed_drawing(b"")[:-1]))
    if suffix == "png":
        one, two = (Image.open(io.BytesIO(part)) for part in (plain, content))
        assert one.tobytes() == two.tobytes() and len(two.text["sha256"]) == 64  # Which checks the sum of the chunk.
