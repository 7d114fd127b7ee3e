"""Damaged files, drawn by a generator: other bytes, other values, other headers. Nothing here says what must happen."""

from __future__ import annotations

import json
import random
import re
import struct

NUMBERS = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
STRINGS = (
    "",
    "x" * 5000,
    "../../outside",
    "/etc/passwd",
    "a\nb",
    "a\0b",
    "\ud800",
    "C:\\x",
    "NaN",
    "__metadata__",
    "é",
)
DEEP = "\x00deep\x00"
VALUES = (
    *NUMBERS, -1, True, False, None, -0.5, 1e308, float("nan"), float("inf"), 10**400, 10**5000,
    *STRINGS, [], {}, [[]], {"a": 1}, [None], list(range(3)), DEEP,
)  # fmt: skip


def raw(rng: random.Random, content: bytes, end: int) -> bytes:
    """One to three changes of the bytes before `end`."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, min(end, len(damaged))))
        match rng.randrange(7):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                number = max(0, min(2**64 - 1, rng.choice(NUMBERS) - rng.randrange(2)))
                damaged[place : place + 8] = struct.pack("<Q", number)
            case 2:
                damaged[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) & (2**32 - 1))
            case 3:
                del damaged[place : place + rng.randint(1, 40)]
            case 4:
                damaged[place:place] = rng.randbytes(rng.randint(1, 40))
            case 5:
                damaged[place:place] = damaged[place : place + rng.randint(1, 200)]
            case 6:
                del damaged[rng.choice([place, len(damaged) - 1]) :]
    return bytes(damaged)


def places_of(value: object) -> list[tuple[object, object]]:
    """Every (container, key) in a JSON value."""
    rows = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, item in rows for place in [(value, key), *places_of(item)]]


def to_json(value: object) -> bytes:
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 9000 + "]" * 9000)
    return text.encode("utf-8", "surrogatepass")


def dumped(rng: random.Random, document: object) -> bytes:
    """A JSON value with one to three values replaced, removed, renamed, repeated or exchanged."""
    import sys

    document = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        places = places_of(document)
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1 | 2:
                container[key] = rng.choice(VALUES)
            case 3:
                del container[key]
            case 4 if isinstance(container, dict):
                container[rng.choice(STRINGS)] = container.pop(key)
            case 4:
                container.insert(key, container[key])
            case 5:
                other, name = rng.choice(places)
                if name in range(len(other)) if isinstance(other, list) else name in other:
                    container[key] = json.loads(json.dumps(other[name]))
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        content = to_json(document)
    finally:
        sys.set_int_max_str_digits(limit)
    if rng.random() < 0.1 and b'"' in content:
        content = content.replace(b"{", b'{"same": 1, "same": 2, ', 1)
    return content


def json_file(rng: random.Random, content: bytes) -> bytes:
    """A damaged JSON file: mostly its values, sometimes its bytes."""
    return raw(rng, content, len(content)) if rng.random() < 0.3 else dumped(rng, json.loads(content))


def safetensors(rng: random.Random, content: bytes) -> bytes:
    """A damaged header: its bytes, or its values under a length that is right."""
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.4:
        return raw(rng, content, 8 + length)
    header = dumped(rng, json.loads(content[8 : 8 + length]))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def gguf(rng: random.Random, content: bytes) -> bytes:
    """A damaged header: anywhere, or in the numbers that follow a name (types, lengths, dimensions, offsets)."""
    end = len(content) - 2 * 12 * 256  # Well before the last tensors, beyond the header.
    names = [match.end() for match in re.finditer(rb"general\.\w+|llama\.\w+|blk\.\d\.ffn_\w+\.weight|split", content)]
    if rng.random() < 0.35:
        return raw(rng, content, min(names[-1] + 40, end))
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 2)):
        place = rng.choice(names) + 4 * rng.randrange(8)
        size = rng.choice((4, 8))
        number = max(0, min(2 ** (8 * size) - 1, rng.choice(NUMBERS) - rng.randrange(2)))
        damaged[place : place + size] = number.to_bytes(size, "little")
    return bytes(damaged)


def toml(rng: random.Random, content: bytes) -> bytes:
    """A damaged recipe: values replaced, lines removed, repeated or exchanged, or other bytes."""
    if rng.random() < 0.2:
        return raw(rng, content, len(content))
    lines = content.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0 | 1 if "=" in lines[place]:
                values = ["-1", "0", "1", "1e400", "nan", "inf", "9" * 5000, "true", '""', '"../x"', "[]", "[1, [2]]"]
                values += ["{}", "[[]]", '"{entity}"', "1979-05-27", '"' + "x" * 3000 + '"', '"\\u0000"', "[" * 3000]
                lines[place] = lines[place].split("=")[0] + "= " + rng.choice(values)
            case 0 | 1 | 2:
                del lines[place]
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 4:
                lines[place] = lines[place].replace(rng.choice("aeilnr"), rng.choice(["", "x", '"', "]", "\n", "é"]), 1)
        lines = lines or [""]
    return "\n".join(lines).encode()
