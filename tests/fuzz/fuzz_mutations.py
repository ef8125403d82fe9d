"""Damages files: bytes of any, and values, lengths and structure of those whose form is known."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

HUGE = (
    0, 1, -1, 2, 255, 256, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 64,
)  # fmt: skip
NUMBERS = (*HUGE, -(1 << 63), 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), 180_000)
TEXTS = (
    "", " ", "0", "-1", "a\0b", "\ud800", "\x1b[2J", "\u202eabc", "$\\frac{$", "$x_$", "\\", "<script>a(1)</script>",
    '"><meta http-equiv=refresh>', "[bold]", "[/]", "{{7*7}}", "${HOME}", "%s%n", "../../outside", "/etc/passwd",
    "/dev/zero", "evil:make", "evil", "os:system", "torch.hub:load", "compress.models:build", "niwaki:lenet5",
    "torchvision:resnet18", "é" * 50, "\N{COMBINING ACUTE ACCENT}" * 50, "A" * 5000,
    "9" * 5000, "sm86", "nan", "1e999", "true", "null",
    "a\nb", "Reshape", "Loop", "ConstantOfShape", "location", "x" * 256 + ".png",
)  # fmt: skip
VALUES = (None, True, False, [], {}, [[]], [None], {"": None}, *NUMBERS, *TEXTS)
INSERTED = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b'"', b"'", b"{", b"[" * 3000, b"<" * 50, b"&a;",
    b"!!python/object", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"9" * 5000, b"-", b",", b"\t", b"&a [*a,*a]",
    b"\x80" * 9 + b"\x01",
)  # fmt: skip


def damaged(content: bytes, form: str, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """A case made from a real file; what is drawn decides it."""
    known = FORMS.get(form)
    if known is not None and draw.random() < 0.75:
        for _ in range(_few(draw)):
            try:
                content = known(content, draw)
            except RecursionError:  # it is nested more than enough
                break
        return content
    for _ in range(_few(draw)):
        content = _bytes(content, draw, others)
    return content


def _few(draw: random.Random) -> int:
    return 1 + min(draw.getrandbits(8).bit_length() ^ 7, 3) if draw.random() < 0.4 else 1


def _bytes(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    held = bytearray(content)
    at = draw.randrange(len(held) + 1)
    kind = draw.randrange(8)
    if kind == 0 and held:
        held[at % len(held)] ^= 1 << draw.randrange(8)
    elif kind == 1 and held:
        held[at % len(held)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    elif kind == 2:
        del held[at:]
    elif kind == 3:
        del held[at : at + draw.choice((1, 2, 8, 64))]
    elif kind == 4:
        held[at:at] = draw.choice(INSERTED)
    elif kind == 5:
        held[at:at] = held[at : at + draw.choice((1, 8, 64, 1000))] * draw.choice((1, 2, 50))
    elif kind == 6 and len(held) > 8:
        size = draw.choice((1, 2, 4, 8))
        value = draw.choice(HUGE) % (1 << 8 * size)
        held[at % (len(held) - 7) :][:size] = b""
        held[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))
    else:
        other = draw.choice(others)
        held[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(held)


# --- texts


def places(value: Any, above: tuple[Any, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a structure of lists and dicts."""
    if above is not None:
        yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (value, key))


def changed(value: Any, draw: random.Random) -> Any:
    """Change one place of a structure: another value, a key less or more, a piece from elsewhere, much nesting."""
    value = copy.deepcopy(value)
    every = list(places(value))
    if not every:
        return draw.choice(VALUES)
    # The deep places are many: half of the draws are of the shallow ones.
    holder, key = draw.choice(every if draw.random() < 0.5 else every[: max(1, len(every) // 8)])
    kind = draw.randrange(9)
    if kind < 4:
        old = holder[key]
        alike = NUMBERS if isinstance(old, int | float) else TEXTS if isinstance(old, str) else VALUES
        holder[key] = draw.choice(alike if draw.random() < 0.7 else VALUES)
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        other, place = draw.choice(every)
        holder[key] = copy.deepcopy(other[place])
    elif kind == 6 and isinstance(holder, dict):
        holder[draw.choice(TEXTS)] = holder.pop(key)
    elif kind == 7:
        nested: Any = 0
        for _ in range(draw.choice((20, 200, 900))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        holder[key] = nested
    else:
        old = holder[key]
        many = draw.choice((2, 100, 3000))
        holder[key] = old * many if isinstance(old, list | str) and len(old) * many < 200_000 else [old] * many
    return value


def _json(content: bytes, draw: random.Random) -> bytes:
    try:
        value = json.loads(content)
        text = json.dumps(changed(value, draw), indent=1, ensure_ascii=draw.random() < 0.7)
    except (ValueError, RecursionError):
        return _tokens(content, draw)
    return text.encode("utf-8", "surrogatepass")


def _yaml(content: bytes, draw: random.Random) -> bytes:
    try:
        value = yaml.safe_load(content)
        return yaml.safe_dump(changed(value, draw), sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return _tokens(content, draw)


def _tokens(content: bytes, draw: random.Random) -> bytes:
    """Replace a word, or double or drop a line."""
    found = list(re.finditer(rb"[\w.+-]+|[^\w\s]", content)) or [re.match(b"", content)]
    one = draw.choice(found)
    if draw.random() < 0.2:
        lines = content.splitlines(keepends=True) or [b""]
        line = draw.randrange(len(lines))
        lines[line : line + 1] = [lines[line]] * draw.choice((0, 2, 1000))
        return b"".join(lines)
    try:
        new = str(draw.choice(VALUES))
    except ValueError:  # Python writes no number of thousands of digits
        new = "9" * 5000
    return content[: one.start()] + new.encode("utf-8", "surrogatepass") + content[one.end() :]


# --- binary forms


def _tensors(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file, or a value of its data."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError, OverflowError):
        return content[:-1]
    data = bytearray(content[8 + length :])
    kind = draw.randrange(6)
    about = header.get("__metadata__") if isinstance(header, dict) else None
    if kind == 0 and data:
        data[draw.randrange(len(data))] ^= draw.randrange(256)
    elif kind in (1, 2) and isinstance(about, dict) and about:
        # What is said of the tensors is JSON within JSON.
        key = draw.choice([*about])
        try:
            about[key] = json.dumps(changed(json.loads(about[key]), draw))
        except (ValueError, TypeError, RecursionError):
            about[key] = draw.choice(TEXTS)
    else:
        header = changed(header, draw)
    text = json.dumps(header).encode()
    said = draw.choice(HUGE) % (1 << 64) if kind == 5 and draw.random() < 0.3 else len(text)
    return struct.pack("<Q", said) + text + bytes(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift <= 63:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """(Key, value) of a message of protocol buffers; raises where it is none."""
    at, found = 0, []
    while at < len(data):
        key, at = _read_varint(data, at)
        if not 1 <= key >> 3 < 3000:
            raise ValueError
        if key & 7 == 0:
            value, at = _read_varint(data, at)
        else:
            size, at = _read_varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError
        found.append((key, value))
    return found


def _written(found: Sequence[tuple[int, Any]]) -> bytes:
    parts = []
    for key, value in found:
        body = _varint(value) if key & 7 == 0 else (_varint(len(value)) if key & 7 == 2 else b"") + value
        parts.append(_varint(key) + body)
    return b"".join(parts)


def _protobuf(content: bytes, draw: random.Random, depth: int = 0) -> bytes:
    """Change one field, at any depth, of a file of protocol buffers whose lengths stay right."""
    try:
        found = _fields(content)
    except (ValueError, IndexError, KeyError):
        return _bytes(content, draw, [content])
    if not found:
        return content
    place = draw.randrange(len(found))
    key, value = found[place]
    if isinstance(value, bytes) and key & 7 == 2 and depth < 6 and draw.random() < 0.85:
        try:
            _fields(value)
        except (ValueError, IndexError, KeyError):
            pass
        else:
            if value:
                found[place] = (key, _protobuf(value, draw, depth + 1))
                return _written(found)
    kind = draw.randrange(6)
    if kind == 0:
        del found[place]
    elif kind == 1:
        found[place:place] = [found[place]] * draw.choice((1, 3, 300))
    elif kind == 2:
        found[place] = (draw.randrange(1, 26) << 3 | key & 7, value)
    elif isinstance(value, int):
        found[place] = (key, draw.choice(HUGE) % (1 << 64))
    elif key & 7 == 2:
        found[place] = (
            key,
            draw.choice((draw.choice(TEXTS).encode("utf-8", "surrogatepass"), *INSERTED[:4], value * 2)),
        )
    else:
        found[place] = (key, draw.randbytes(len(value)))
    return _written(found)


def _image(content: bytes, draw: random.Random) -> bytes:
    """Change a field of a PNG's chunk whose checksum is made right again; of other formats a byte of the first ones."""
    if not content.startswith(b"\x89PNG") or draw.random() < 0.2:
        held = bytearray(content)
        if held:
            at = draw.randrange(min(len(held), 64))
            size = draw.choice((1, 2, 4))
            held[at : at + size] = (draw.choice(HUGE) % (1 << 8 * size)).to_bytes(size, draw.choice(("little", "big")))
        return bytes(held)
    at, chunks = 8, []
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    place = draw.randrange(len(chunks))
    name, body = chunks[place]
    kind = draw.randrange(5)
    if kind == 0:
        side = draw.choice((0, 1, 5000, 40_000, 1 << 31))
        head = struct.pack(">II", draw.choice((side, 20)), side)
        chunks[0] = (chunks[0][0], head + chunks[0][1][8:])
    elif kind == 1:
        chunks[place:place] = [draw.choice(chunks)]
    elif kind == 2:
        flood = zlib.compress(bytes(draw.choice((100, 1_000_000, 60_000_000))), 9)
        extra = draw.choice(
            ((b"IDAT", flood), (b"zTXt", b"a\0\0" + flood), (b"iCCP", b"a\0\0" + flood), (b"tRNS", b"\0"))
        )
        chunks.insert(1, extra)
    elif body:
        chunks[place] = (name, _bytes(body, draw, [body]))
    else:
        del chunks[place]
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return content[:8] + b"".join(parts)


FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "yaml": _yaml, "xml": _tokens, "text": _tokens, "tensors": _tensors, "onnx": _protobuf,
    "image": _image,
}  # fmt: skip
"""Form of a file -> how its structure is damaged; a form that is not here has bytes alone."""
