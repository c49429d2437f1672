"""Say one thing of a model and mean another: doubled keys, holes, overlaps, odd names, huge counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stage import OTHER, Stage, alone

from konsil.core.parameters import Schema, Tensor, read_safetensors
from konsil.core.rules import ProposeStudy, StudySettings
from konsil.core.wall import WALL_VERSION, Failed, Join, Knock, Terms
from konsil.errors import KonsilError
from konsil.wall.frames import frame
from konsil.wall.model_file import check_model_file

TRUE = Schema((Tensor("a", "F32", (2,)), Tensor("b", "F32", (2,))))


def attack(stage: Stage) -> None:
    """As the schema that a training process joins with, as a study's first model, and as a model's file."""
    stage.control(OTHER).call(ProposeStudy(StudySettings(name="headers", every_steps=1)))
    folder = stage.swarm.root / "headers"
    folder.mkdir(exist_ok=True)
    for what, header in _headers():
        stage.must(_is_refused(stage, header), f"{what}: the node took it as a schema")
        _files(stage, folder / "model.safetensors", what, header)
        stage.says(f"{what}: refused")


def _headers() -> Iterator[tuple[str, bytes]]:
    a = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    b = '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}'
    yield "a name twice", _header("{" + a + "," + a.replace("[0,8]", "[8,16]") + "}")
    yield "a key twice", _header("{" + a.replace("[2]", '[9],"shape":[2]') + "," + b + "}")
    yield "arrays that overlap", _header("{" + a + "," + b.replace("[8,16]", "[0,8]") + "}")
    yield "a hole between arrays", _header("{" + a + "," + b.replace("[8,16]", "[12,20]") + "}")
    yield "arrays in another order", _header("{" + b + "," + a + "}")
    yield "an array that ends before it begins", _header("{" + a + "," + b.replace("[8,16]", "[16,8]") + "}")
    yield "a shape of 2^64 elements", _header("{" + a.replace("[2]", f"[{2**32},{2**32}]") + "}")
    yield "a shape of -1", _header("{" + a.replace("[2]", "[-1,-2]") + "}")
    yield "a shape of 1e30", _header("{" + a.replace("[2]", "[" + "9" * 30 + "]") + "}")
    yield "2000 dimensions", _header("{" + a.replace("[2]", str([1] * 2000)) + "}")
    yield "an array of none times 2^40", _header("{" + a.replace("[2]", f"[0,{2**40},{2**40}]") + "}")
    yield "integers", _header("{" + a.replace("F32", "I32") + "}")
    yield "a dtype of its own", _header("{" + a.replace("F32", "PICKLE") + "}")
    yield (
        "fields that nobody knows",
        _header("{" + a.replace('"dtype"', '"loader":"os.system","dtype"') + "}"),
    )
    for name in ("", "a\x00", "\x1b[2J", "a\n", "__metadata__"):
        yield f"the name {name!r}", _header("{" + a.replace('"a"', json.dumps(name)) + "," + b + "}")
    yield "a letter written as two", _header("{" + a.replace('"a"', '"\\u0061"') + "," + b + "}")
    yield "half a letter", _header("{" + a.replace('"a"', '"\\ud800"') + "," + b + "}")
    yield "text that is none", _header("{" + a + "," + b + "}").replace(b'"b"', b'"\xff"')
    yield "spaces within", _header("{" + a + ", " + b + "}")
    yield "tabs at its end", _header("{" + a + "," + b + "}").replace(b" ", b"\t")
    yield "bytes after it", TRUE.header + b"\0" * 8
    yield "no bytes", b""
    yield "a length of 2^63", (1 << 63).to_bytes(8, "little") + TRUE.header[8:]
    yield "a length that ends before it does", (8).to_bytes(8, "little") + TRUE.header[8:]
    many = ",".join(f'"{n:06d}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(150_000))
    yield "150,000 empty arrays, over 8 MiB", _header("{" + many + "}")


def _header(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _is_refused(stage: Stage, header: bytes) -> bool:
    with stage.wall(OTHER) as wall:
        wall.send(frame(Knock(WALL_VERSION, "headers", 1)))
        terms = wall.hears()
        stage.must(isinstance(terms, Terms), f"the node did not take a knock: {terms}")
        wall.send(frame(Join(header)))
        return isinstance(wall.hears(), Failed | None)


def _files(stage: Stage, path: Path, what: str, header: bytes) -> None:
    """Where such a file is read at all, it says which: nobody takes it for a model of the swarm."""
    path.write_bytes(header + bytes(16))
    try:
        check_model_file(path)
    except KonsilError:
        pass
    else:
        stage.must(held=False, what=f"{what}: was believed to be a study's model")
    try:
        arrays = read_safetensors(header + bytes(16))
    except KonsilError:
        return
    stage.must(sum(array.nbytes for array in arrays.values()) <= 16, f"{what}: more was read than is there")


if __name__ == "__main__":
    alone(attack)
