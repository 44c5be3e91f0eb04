"""Mutators of GGUF files, which keep the rest of the file valid: keys, types, counts, tensors and offsets."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .values import NUMBERS, TEXTS

_FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _LIST = 8, 9
_SIZES = (0, 1, 2, 3, 16, 31, 2**16, 2**31, 2**32, 2**40, 2**61, 2**63, 2**64 - 1)


@dataclass
class _Tensor:
    name: bytes
    shape: list[int]
    kind: int
    offset: int


@dataclass
class _Model:
    version: int
    fields: list[tuple[bytes, int, Any]]
    tensors: list[_Tensor]
    data: bytes


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return value

    def text(self) -> bytes:
        size = self.number("<Q")
        self.place += size
        return self.content[self.place - size : self.place]

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.number("<I"), self.number("<Q")
            return inner, count, [self.value(inner) for _ in range(count)]
        return self.number(_FORMATS[kind])


def _read(file: Path) -> _Model:
    reader = _Reader(file.read_bytes())
    reader.place = 4
    version, num_tensors, num_fields = (reader.number(form) for form in ("<I", "<Q", "<Q"))
    fields = []
    for _ in range(num_fields):
        name, kind = reader.text(), reader.number("<I")
        fields.append((name, kind, reader.value(kind)))
    tensors = []
    for _ in range(num_tensors):
        name = reader.text()
        shape = [reader.number("<Q") for _ in range(reader.number("<I"))]
        tensors.append(_Tensor(name, shape, reader.number("<I"), reader.number("<Q")))
    return _Model(version, fields, tensors, reader.content[-(-reader.place // 32) * 32 :])


def _pack_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pack_value(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return _pack_text(value)
    if kind == _LIST:
        inner, count, values = value
        return struct.pack("<IQ", inner, count) + b"".join(_pack_value(inner, one) for one in values)
    return struct.pack(_FORMATS[kind], value)


def _write(file: Path, model: _Model, num_tensors: int | None = None, num_fields: int | None = None) -> None:
    counts = (
        len(model.tensors) if num_tensors is None else num_tensors,
        len(model.fields) if num_fields is None else num_fields,
    )
    parts = [b"GGUF", struct.pack("<IQQ", model.version, *counts)]
    for name, kind, value in model.fields:
        parts.append(_pack_text(name) + struct.pack("<I", kind) + _pack_value(kind, value))
    for tensor in model.tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts.append(_pack_text(tensor.name) + shape + struct.pack("<IQ", tensor.kind, tensor.offset))
    head = b"".join(parts)
    file.write_bytes(head + bytes(-len(head) % 32) + model.data)


def change_field(file: Path, draw: random.Random) -> None:
    """Set a field to another value of its type."""
    model = _read(file)
    number = draw.randrange(len(model.fields))
    name, kind, value = model.fields[number]
    if kind == _TEXT:
        value = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif kind == _LIST:
        inner, _, values = value
        way = draw.randrange(4)
        if way == 0:
            values = values[: draw.randrange(len(values) + 1)]
        elif way == 1:
            values = values[:1] * len(values)
        elif way == 2:
            values = values * draw.choice((2, 400))
        else:
            draw.shuffle(values)
        value = inner, len(values), values
    else:
        form = _FORMATS[kind]
        choices = [one for one in NUMBERS if _fits(form, one)]
        value = draw.choice(choices)
    model.fields[number] = name, kind, value
    _write(file, model)


def change_type(file: Path, draw: random.Random) -> None:
    """Declare another type, a nested list, or another length of a list."""
    model = _read(file)
    number = draw.randrange(len(model.fields))
    name = model.fields[number][0]
    way = draw.randrange(4)
    if way == 0:
        model.fields[number] = name, _TEXT, draw.choice((b"llama", b"1", b"", b"x" * 9))
    elif way == 1:
        nested: Any = (4, 1, [1])
        for _ in range(draw.choice((1, 5, 3000))):
            nested = (_LIST, 1, [nested])
        model.fields[number] = name, _LIST, nested
    elif way == 2:
        lists = [index for index, one in enumerate(model.fields) if one[1] == _LIST]
        index = draw.choice(lists)
        name, kind, (inner, _, values) = model.fields[index]
        model.fields[index] = name, kind, (inner, draw.choice(_SIZES), values)
    else:
        model.fields[number] = name, draw.choice((0, 5, 6, 7, 10, 12)), 1
    _write(file, model)


def change_keys(file: Path, draw: random.Random) -> None:
    """Delete, repeat, rename or add fields, or count them wrongly."""
    model = _read(file)
    number = draw.randrange(len(model.fields))
    name, kind, value = model.fields[number]
    way = draw.randrange(6)
    if way == 0:
        del model.fields[number]
    elif way == 1:
        model.fields.append(model.fields[number])
    elif way == 2:
        model.fields[number] = (
            draw.choice((b"", b"general.alignment", name[::-1], b"x" * 70_000)),
            kind,
            value,
        )
    elif way == 3:
        key = draw.choice((b"general.alignment", b"split.count", b"general.file_type", b"llama.expert_count"))
        model.fields.append((key, 4, draw.choice((0, 1, 3, 7, 2**31, 2**32 - 1))))
    elif way == 4:
        key = draw.choice((b"tokenizer.chat_template", b"general.architecture", b"tokenizer.ggml.pre"))
        model.fields.append((key, _TEXT, draw.choice((b"gpt2", b"{{ 1 }}" * 9, b"mamba", b"t5", b"qwen2"))))
    _write(file, model, num_fields=draw.choice(_SIZES) if way == 5 else None)


def change_tensor(file: Path, draw: random.Random) -> None:
    """Change name, shape, type or offset of a tensor, or the number of tensors."""
    model = _read(file)
    tensor = draw.choice(model.tensors)
    way = draw.randrange(8)
    if way == 0:
        tensor.kind = draw.choice((0, 1, 2, 3, 8, 10, 12, 14, 16, 24, 28, 30, 39, 99, 2**32 - 1))
    elif way == 1:
        tensor.shape[draw.randrange(len(tensor.shape))] = draw.choice(_SIZES)
    elif way == 2:
        tensor.shape = [draw.choice(_SIZES) for _ in range(draw.choice((0, 1, 3, 5, 900)))]
    elif way == 3:
        tensor.offset = draw.choice((1, 32, *_SIZES[6:]))
    elif way == 4:
        tensor.name = draw.choice(
            (b"", b"blk.99999999.attn_q.weight", b"\xff", draw.choice(model.tensors).name)
        )
    elif way == 5:
        model.tensors.remove(tensor)
    elif way == 6:
        model.tensors *= draw.choice((2, 300))
    _write(file, model, num_tensors=draw.choice(_SIZES) if way == 7 else None)


def change_version(file: Path, draw: random.Random) -> None:
    """Change magic, version or byte order."""
    data = bytearray(file.read_bytes())
    way = draw.randrange(3)
    if way == 0:
        data[4:8] = struct.pack("<I", draw.choice((0, 1, 2, 4, 2**32 - 1)))
    elif way == 1:
        data[4:8] = struct.pack(">I", 3)
    else:
        data[:4] = draw.choice((b"FUGG", b"ggml", b"GGUf"))
    file.write_bytes(data)


def _fits(form: str, value: Any) -> bool:
    try:
        struct.pack(form, value)
    except (struct.error, OverflowError):
        return False
    return True


WAYS = (
    change_field,
    change_field,
    change_type,
    change_type,
    change_keys,
    change_tensor,
    change_tensor,
    change_version,
)
