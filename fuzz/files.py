"""What is in files: settings, studies, models, local states, data sets."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ledgers
import msgspec
import numpy as np
import world
from target import Target, must, refusal

from konsil.core.digest import CHUNK_BYTES, Manifest, group_digest, leaf
from konsil.core.model_card import CARD_KEY, decode_card, encode_card
from konsil.core.parameters import (
    MAX_FILE_HEADER_BYTES,
    Schema,
    annotated_header,
    file_pieces,
    header_of_file,
    pack,
    read_safetensors,
)
from konsil.core.rules import SwarmSettings, check_study_settings, check_swarm_settings, settings_digest
from konsil.errors import ConfigError, DigestMismatch, ParametersError
from konsil.evaluation import tables
from konsil.learners.base import learner_for
from konsil.learners.shared import Shared
from konsil.node.config import Config, read_config, read_study_file, write_config
from konsil.node.models import Models
from konsil.node.rules import read_rule_file
from konsil.node.tables import MemberTable, NodeTable
from konsil.node.toml import read_settings_file
from konsil.session.resume import LocalFile
from konsil.wall.model_file import bare_header, check_model_file
from konsil.wall.model_page import page_of

KIB = 1024


def _file(name: str, data: bytes) -> Path:
    path = world.scratch() / "files" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# --- settings --------------------------------------------------------------------------------------


def read_node_toml(data: bytes) -> bool:
    """A node's settings; what is written of them is read again."""
    path = _file("node.toml", data)
    try:
        config = read_config(path.parent)
    except ConfigError as error:
        refusal(error)
        return False
    write_config(config)
    again = read_config(path.parent)
    must(
        (again.member, again.identity, again.node)
        == (
            msgspec.structs.replace(config.member, trust_domain=config.trust_domain),
            config.identity,
            config.node,
        ),
        "settings do not come back",
    )
    return True


def node_toml_seeds() -> list[bytes]:
    """As `konsil node init` writes it."""
    folder = world.scratch() / "files"
    folder.mkdir(exist_ok=True)
    write_config(Config(folder, MemberTable("a"), node=NodeTable("127.0.0.1:7420", ("a.example:7420",))))
    return [(folder / "node.toml").read_bytes()]


def read_study_toml(data: bytes) -> bool:
    """A study's file, and whether it could be proposed."""
    path = _file("study.toml", data)
    try:
        settings = read_study_file(path)
        digest = settings_digest(settings)
        check_study_settings(settings, world.NAMES)
    except ConfigError as error:
        refusal(error)
        return False
    again = msgspec.json.decode(msgspec.json.encode(settings), type=type(settings))
    must(settings_digest(again) == digest, "two digests of one study's settings")
    try:
        swarm = read_settings_file(path, SwarmSettings)
        check_swarm_settings(swarm)
    except ConfigError as error:
        refusal(error)
    return True


STUDY = b"""name = "aml"
members = ["a", "b", "c"]
min_members = 3
every_steps = 10
rule = "trimmed_mean"
rule_options = { f = 1 }
quorum = 3
weighting = "given"
silence_s = 60
local = ["head.*"]
stop_minutes = 1.5

[given]
a = 1
b = 2
c = 3

[plateau]
metric = "auc"
mode = "max"
rounds = 2

[outer]
method = "yogi"
tau = 1e-3
"""


# --- models ----------------------------------------------------------------------------------------


def _arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "bias": np.arange(3, dtype="<f4"),
        "weight": np.ones((3, 4), "<f4"),
        "scale": np.ones(2, "<f2"),
    }


@cache
def _model() -> tuple[bytes, Manifest]:
    """A model's data section and its manifest."""
    schema, arrays = world.schema(), _arrays()
    data = bytearray(schema.data_bytes)
    pack(schema, arrays, memoryview(data))
    return bytes(data), Manifest(schema.header, ((leaf(data),),))


def read_model_file(data: bytes) -> bool:
    """A model's file from anywhere: checked, read, and its page written."""
    path = _file("model.safetensors", data)
    try:
        found = check_model_file(path)
    except (ConfigError, ParametersError, DigestMismatch) as error:
        refusal(error)
        held = False
    else:
        must(len(found.digest) == 64, "no digest")
        held = True
    header = bare_header(io.BytesIO(data))
    must(len(header) <= MAX_FILE_HEADER_BYTES + 8, "a header over its limit")
    try:
        _, metadata, _ = header_of_file(data)
        card = decode_card(metadata.get(CARD_KEY, ""))
    except ParametersError as error:
        refusal(error)
        return False
    page = page_of(card, path.name)
    must(all(letter.isprintable() or letter == "\n" for letter in page), "a page that steers a terminal")
    return held


def model_file_seeds() -> list[bytes]:
    """As `konsil study model` writes it."""
    data, manifest = _model()
    card = msgspec.structs.replace(
        ledgers._model_card(),  # noqa: SLF001 - the same scripts
        schema=world.schema().digest,
        data_bytes=len(data),
        groups=(1,),
        digest=manifest.digest,
        merge=manifest.digest,
        round=0,
        rounds=(),
        initial=manifest.digest,
    )
    header = annotated_header(world.schema(), {CARD_KEY: encode_card(card).decode()})
    return [header + data, world.schema().header + data]


def read_any_safetensors(data: bytes) -> bool:
    """Any safetensors file: its arrays lie within it, and do not overlap."""
    try:
        arrays = read_safetensors(data)
    except ParametersError as error:
        refusal(error)
        return False
    try:
        _, metadata, begin = header_of_file(data)
    except ParametersError as error:  # its metadata may be none: ``read_safetensors`` does not look at it
        refusal(error)
        return False
    must(sum(array.nbytes for array in arrays.values()) == len(data) - begin, "holes or overlaps")
    try:
        again = read_safetensors(b"".join(file_pieces(arrays, metadata)))
    except ParametersError as error:
        refusal(error)
        return False
    must(all(np.array_equal(again[name].view("u1") if again[name].ndim else again[name],
                            arrays[name].view("u1") if arrays[name].ndim else arrays[name])
             for name in arrays if arrays[name].size and arrays[name].flags.c_contiguous),
         "arrays do not come back")  # fmt: skip
    try:
        Schema.of(arrays)
    except ParametersError as error:
        refusal(error)
    return True


def safetensors_seeds() -> list[bytes]:
    """Of all kinds."""
    odd: dict[str, Any] = {
        "n": np.int64(3),
        "flag": np.array([True]),
        "none": np.zeros((0, 3), "<f8"),
        **_arrays(),
    }
    return [b"".join(file_pieces(odd, {"a": "b"})), b"".join(file_pieces({}, {}))]


def read_local_state(data: bytes) -> bool:
    """What a script kept between two runs."""
    path = _file("aml.a.resume.safetensors", data)
    learner = Shared(learner_for({"head.bias": np.zeros(2, "<f4"), **_arrays()}), ("head.*",))
    try:
        LocalFile(path, swarm="s", study="aml", member="a").load(learner, 3, "d")
    except ConfigError as error:
        refusal(error)
        return False
    return True


@cache
def local_state_seeds() -> list[bytes]:
    """As a session writes it."""
    path = world.scratch() / "seed.resume.safetensors"
    arrays = {"head.bias": np.ones(2, "<f4"), **_arrays()}
    LocalFile(path, swarm="s", study="aml", member="a").save(Shared(learner_for(arrays), ("head.*",)), 2, "d")
    return [path.read_bytes()]


def load_stored(data: bytes) -> bool:
    """A damaged model of the node's own: 4 bytes say where the manifest ends."""
    if len(data) < 4:
        return False
    cut = 4 + int.from_bytes(data[:2], "big")
    digest = _model()[1].digest
    folder = world.scratch() / "merges"
    (folder / "aml").mkdir(parents=True, exist_ok=True)
    (folder / "aml" / f"{digest}.manifest").write_bytes(data[4:cut])
    (folder / "aml" / f"{digest}.safetensors").write_bytes(data[cut:])
    models = Models(folder)
    model = world.loop().run_until_complete(_both(models, digest))
    if model is not None:
        must(model.manifest.digest == digest, "another model than was asked for")
        leaves = tuple(leaf(model.chunk(at)) for at in range(len(model.manifest.leaves)))
        must(model.manifest.leaves == leaves, "bytes that are not what their digest says")
        model.close()
    return model is not None


async def _both(models: Models, digest: str) -> Any:
    stored = await models.open("aml", digest)
    if stored is not None:
        stored.close()
    return await models.load("aml", digest)


def stored_seeds() -> list[bytes]:
    """As the node writes it."""
    data, manifest = _model()
    encoded = manifest.encode()
    must(
        group_digest(manifest.groups[0]) == manifest.group_digests[0] and len(data) < CHUNK_BYTES,
        "a small model",
    )
    return [len(encoded).to_bytes(2, "big") + b"\0\0" + encoded + world.schema().header + data]


# --- others ----------------------------------------------------------------------------------------


def read_rows(data: bytes) -> bool:
    """A table of a data set."""
    path = _file("rows.csv", data)
    try:
        records = tables._records(path)  # noqa: SLF001 - the reader of every data set's files
        numbers = tables._numbers(path, records, len(records[0]))  # noqa: SLF001
    except ConfigError as error:
        refusal(error)
        return False
    must(numbers.shape == (len(records), len(records[0])), "another table than its text")
    return True


def read_rule(data: bytes) -> bool:
    """A rule's file is read and digested, never run; its name is the first line."""
    name, _, body = data.partition(b"\n")
    text = name.decode("utf-8", "replace").replace("/", "_").replace("\0", "_")[:100] or "x"
    if text in {".", ".."} or len(text.encode()) > 250:
        return False
    target = _file(text, body)
    try:
        found, read = read_rule_file(target)
    except ConfigError as error:
        refusal(error)
        return False
    finally:
        target.unlink()
    must(read == body and found.name.isascii() and found.name.islower(), "another name or other bytes")
    return True


TOML_BYTES = 4 * KIB
_seeds: Callable[[], list[bytes]] = lambda: [STUDY]  # noqa: E731
TARGETS: Sequence[Target] = (
    Target("node_toml", "a node's settings", read_node_toml, node_toml_seeds, max_bytes=TOML_BYTES),
    Target("study_toml", "a study's file", read_study_toml, _seeds, max_bytes=TOML_BYTES),
    Target("model_file", "a model's file", read_model_file, model_file_seeds),
    Target("safetensors", "any safetensors file", read_any_safetensors, safetensors_seeds),
    Target("local_state", "what a script kept between two runs", read_local_state, local_state_seeds),
    Target("stored", "a model on the node's disk", load_stored, stored_seeds),
    Target("rows", "a table of a data set", read_rows, lambda: [b"1,2,?\n3.5,4,-9\n", b'"a",1\n']),
    Target(
        "rule_file", "the file of a merge rule", read_rule, lambda: [b"bounded.py\ndef rule(options): ...\n"]
    ),
)
