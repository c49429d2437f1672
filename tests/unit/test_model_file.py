"""Model files of strangers: what is refused before work is put into them."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.digest import MAX_GROUPS, group_digest, leaf, root_from
from konsil.core.model_card import CARD_KEY, ModelCard, decode_card, encode_card
from konsil.core.parameters import Schema, annotated_header
from konsil.core.rules import StudySettings, settings_digest
from konsil.errors import DigestMismatch, ParametersError
from konsil.wall import model_file
from konsil.wall.model_file import check_model_file

ARRAYS = {"weights": np.arange(10, dtype=np.float32)}
DATA = ARRAYS["weights"].tobytes()


def card(groups=(1,), arrays=ARRAYS, **changes) -> ModelCard:
    """The card of a model of one chunk in its first group, as initial parameters."""
    schema, settings = Schema.of(arrays), StudySettings("aml", every_steps=1)
    leaves = [leaf(DATA)]
    digest = root_from(schema.digest, [group_digest(leaves[:count]) for count in groups])
    made = ModelCard(
        study="aml", swarm="a" * 64, round=0, digest=digest, merge=digest, final=True, why="The last one.",
        settings=settings, settings_digest=settings_digest(settings), schema=schema.digest,
        data_bytes=schema.data_bytes, groups=tuple(groups), initial=digest, proposer="a", phase="finished",
        ended="", started_s=0, ended_s=0, rounds=(), height=1, state="b" * 64, software="1",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file with a card, Konsil's header or another, and data."""

    def written(made, entries=None, data=DATA):
        path = tmp_path / "m.safetensors"
        text = encode_card(made).decode()
        if entries is None:
            header = annotated_header(Schema.of(ARRAYS), {CARD_KEY: text})
        else:
            raw = json.dumps({"__metadata__": {CARD_KEY: text}} | entries).encode()
            header = len(raw).to_bytes(8, "little") + raw
        path.write_bytes(header + data)
        return path

    return written


def entry(shape, start, stop):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


def test_a_model_in_as_many_groups_as_there_can_be_is_checked(write):
    made = card([1] + [0] * (MAX_GROUPS - 1))
    assert check_model_file(write(made)).digest == made.digest


def test_a_card_with_more_groups_than_a_merge_has_is_refused_at_once(write):
    path = write(card([1] + [0] * 60_000))
    began_s = time.perf_counter()
    with pytest.raises(ParametersError, match="has 60001 groups of chunks; it must be 1 to 1024"):
        check_model_file(path)
    assert time.perf_counter() - began_s < 0.5  # the square of the groups took half a minute


@pytest.mark.parametrize("data_bytes", [-1, 0, 10**30])
def test_a_card_of_no_bytes_or_of_absurdly_many_is_refused(data_bytes):
    with pytest.raises(ParametersError, match="bytes of parameters; it must be 1 to"):
        decode_card(encode_card(card(data_bytes=data_bytes)))


@pytest.mark.parametrize("groups", [(), (-1, 2), (2,)])
def test_a_card_whose_groups_do_not_hold_its_chunks_is_refused(groups):
    with pytest.raises(ParametersError, match="chunks"):
        decode_card(encode_card(replace(card(), groups=groups)))


def test_arrays_that_overlap_are_refused_before_any_is_digested(write, monkeypatch):
    shape = (10,)
    names = [f"t{number:03}" for number in range(500)]
    made = card(arrays={name: np.zeros(shape, np.float32) for name in names})
    path = write(made, {name: entry(shape, 0, 40) for name in names})
    monkeypatch.setattr(model_file, "leaf", _never)
    with pytest.raises(ParametersError, match="its arrays overlap"):
        check_model_file(path)


def test_arrays_in_another_order_and_empty_ones_do_not_overlap(write):
    one, two = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32)
    arrays = {"a": one, "b": two, "c": np.zeros((0, 3), np.float32)}
    layout = one.tobytes() + two.tobytes()
    made = card(arrays=arrays)
    digest = root_from(Schema.of(arrays).digest, [group_digest([leaf(layout)])])
    made = replace(made, digest=digest, merge=digest, initial=digest)
    entries = {"b": entry((6,), 0, 24), "c": entry((0, 3), 10, 10), "a": entry((4,), 24, 40)}
    assert check_model_file(write(made, entries, two.tobytes() + one.tobytes())).digest == digest


def test_a_file_of_another_schema_is_refused_before_it_is_digested(write, monkeypatch):
    path = write(card(), {"other": entry((10,), 0, 40)})
    monkeypatch.setattr(model_file, "leaf", _never)
    with pytest.raises(DigestMismatch, match="names, dtypes or shapes"):
        check_model_file(path)


def test_a_file_that_is_cut_short_is_refused(write):
    with pytest.raises(ParametersError, match="cut short"):
        check_model_file(write(card(), data=DATA[:-4]))


def _never(_chunk):
    raise AssertionError("it was digested")
