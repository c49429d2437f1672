"""A history is exported at a member and verified where there is nothing but the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from konsil.cli import main
from konsil.cli.audit_report import of_audited_study
from konsil.core.parameters import Schema, pack
from konsil.core.rules import (
    Best,
    Commitment,
    DisputeRecord,
    Initialise,
    Participant,
    ProposeStudy,
    ProposeStudySettings,
    RoundRecord,
    ScoreRecord,
    State,
    Study,
    StudySettings,
    SwarmSettings,
)
from konsil.core.rules.state import Proposal
from konsil.node.store import model_of
from konsil.wall.memory import seal_pieces

SETTINGS = StudySettings("heart", description="AUC\x1b[31m", min_members=2, every_steps=10)


@pytest.fixture
def exported(site):
    """A bundle of two calls, and where a node runs."""
    site.found()
    file = site.root / "aml.konsil-audit"
    with site.node() as node:
        node.submit(ProposeStudy(SETTINGS))
        node.submit(ProposeStudy(replace(SETTINGS, name="lung")))
        site.run("audit", "export", str(file))  # the journal is in use
    return site, file


def verify(file, *words: str, expect: int = 0):
    """Run the verification in a process's place where no member's directory is."""
    result = CliRunner(env={"KONSIL_DIR": "/nowhere"}).invoke(main, ["audit", "verify", str(file), *words])
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result


def test_an_export_says_what_is_in_it(exported):
    site, file = exported
    before = file.read_bytes()
    told = site.json("audit", "export", str(file))
    head = site.json("ledger", "verify")["head"]
    assert told == {"file": str(file), "height": 2, "head": head, "cards": 3, "lacking": [], "proof": True}
    assert file.read_bytes() == before
    next((site.root / "lyon" / "cards").iterdir()).unlink()
    said = site.run("audit", "export", str(file)).stdout
    assert "2 calls and 2 members' cards" in said
    assert "This node lacks the card" in said


def test_what_is_proven_and_what_not_is_said_in_sentences(exported):
    site, file = exported
    shown = site.json("ledger", "verify")
    text = verify(file).stdout
    for sentence in (
        "2 calls, each signed with the ledger key of the member that made it",
        "The cards in it (3) are those on the ledger",
        "Compare the genesis digest with two members by telephone",
        "Calls after entry 2 may have been withheld",
        "the word of 'lyon', who operates this ledger",
        "A member whose entry 2 has the same digest (`head`) holds the same history",
        f"head:    {shown['head']}",
        "What members say of themselves: example counts, scores",
        "Study 'heart': AUC",
        "Study 'lung'",
        f"genesis: {shown['genesis']}",
        f"state:   {shown['state']}",
    ):
        assert sentence in text, text
    assert "\x1b" not in text
    assert "rounds accepted: 0 of 10" in text


def test_a_genesis_that_was_named_is_compared(exported):
    site, file = exported
    genesis = site.json("ledger", "verify")["genesis"]
    text = verify(file, "--genesis", genesis).stdout
    assert "It is the swarm whose genesis you named." in text
    assert "telephone" not in text
    spoken = " ".join(genesis[at : at + 4] for at in range(0, 64, 4)).upper()
    assert json.loads(verify(file, "--genesis", spoken, "--json").stdout)["genesis_named"] is True
    other = verify(file, "--genesis", "ab" * 32, expect=1).stderr
    assert f"its genesis is {genesis}, not {'ab' * 32}" in other
    assert "is no digest" in verify(file, "--genesis", genesis[:-1], expect=1).stderr


def test_one_study_can_be_told_of_alone(exported):
    _, file = exported
    text = verify(file, "--study", "lung").stdout
    assert "Study 'lung'" in text
    assert "Study 'heart'" not in text
    assert set(json.loads(verify(file, "--study", "lung", "--json").stdout)["studies"]) == {"lung"}
    assert "Studies: heart, lung." in verify(file, "--study", "skin", expect=1).stderr


def test_a_changed_file_is_an_error_with_its_line(exported):
    _, file = exported
    data = file.read_bytes()
    file.write_bytes(data.replace(b'\\"rounds\\":10', b'\\"rounds\\":11', 1))
    said = verify(file, expect=1).stderr
    assert said.startswith("JournalCorrupt: The audit bundle aml.konsil-audit does not hold at line 3")
    told = json.loads(verify(file, "--json", expect=1).stderr)["error"]
    assert told["fields"] == {"line": 3}


def test_a_model_file_is_found_in_the_history(exported):
    site, file = exported
    arrays = {"w": np.linspace(0, 1, 1000, dtype=np.float32)}
    schema = Schema.of(arrays)
    data = bytearray(schema.data_bytes)
    pack(schema, arrays, memoryview(data))
    out = site.root / "m.safetensors"
    with seal_pieces([schema.header, bytes(data)]) as memory, site.node() as node:
        model = model_of(memory, schema)
        node.submit(Initialise("heart", model.schema.digest, model.digest, model.schema.data_bytes))
        node.held = model
        site.run("study", "model", "heart", "--out", str(out))
        early = verify(file, "--model", str(out), expect=1).stderr
        assert "it was written at height 3, and this ledger is at 2" in early
        site.run("audit", "export", str(file))
    text = verify(file, "--model", str(out)).stdout
    assert f"{out} is the initial model of study 'heart'" in text
    assert "The ledger in this bundle has the same digest" in text
    told = json.loads(verify(file, "--model", str(out), "--json").stdout)["model"]
    assert (told["study"], told["round"], told["digest"], told["ledger"]) == ("heart", 0, model.digest, True)
    changed = bytearray(out.read_bytes())
    changed[-1] ^= 1
    out.write_bytes(changed)
    assert "DigestMismatch" in verify(file, "--model", str(out), expect=1).stderr


def test_the_help_of_a_verification_names_no_members_directory():
    text = CliRunner().invoke(main, ["audit", "verify", "--help"]).stdout
    assert "--dir" not in text


# --- what a study came to ------------------------------------------------------------------------


def record(number: int, roster: str, **changes) -> RoundRecord:
    made = RoundRecord(
        number=number,
        attempt=1,
        base="",
        digest=f"{number:064x}",
        roster={name: Commitment("", 10, 0) for name in roster.split()},
        weights=dict.fromkeys(roster.split(), 10),
        parts=(),
        absent={},
        opened_s=0,
        merging_s=0,
        accepted_s=1_800_000_000 + number,
        scores={
            name: ScoreRecord(5, None, {"auc": 0.5 + number / 100 + at / 10})
            for at, name in enumerate(roster.split())
        },
    )
    return replace(made, **changes)


def test_rounds_are_told_together_while_nothing_changes_and_all_that_happened_is_told():
    dispute = DisputeRecord("lille", "nice", 1, 2, 7, 0, {"lille": True, "lyon": True}, "wrong")
    history = (
        record(1, "lille lyon nice"),
        record(2, "lille lyon nice"),
        record(3, "lille lyon", disputes=(dispute,), struck=("nice",), absent={"nice": "struck"}),
        record(4, "lille lyon", absent={"nice": "struck"}),
        record(5, "lyon", absent={"lille": "silent", "nice": "struck"}),
    )
    settings = replace(SETTINGS, best=Best("auc", "max"))
    study = Study(
        settings,
        "s" * 64,
        "lyon",
        1_700_000_000,
        phase="finished",
        participants={
            "lille": Participant(),
            "lyon": Participant(),
            "nice": Participant(struck=True),
            "rennes": Participant(),
        },
        initial="i",
        history=history,
        ended="All who took part have finished: lyon.",
        ended_s=1_800_000_010,
        best=4,
    )
    change = Proposal(1, "lyon", ProposeStudySettings(settings), 0, {}, "passed")
    state = State("", "local", "lyon", SwarmSettings(), {}, (change,), {"heart": study}, 9, 1_900_000_000)
    text = "\n".join(of_audited_study(state, study))
    for line in (
        "its settings were changed by vote: 1 time; those above are the last",
        "it is finished, on ",
        "lille: took part in 4, with 41.7% of these merges; silent in 1",
        "lyon: took part in 5, with 53.3% of these merges",
        "nice: took part in 2, with 33.3% of these merges; struck in 3; struck for good: a wrong merge was proven",
        "rennes: took part in 0",
        "rounds 1 to 2, accepted ",
        ": lille, lyon, nice took part\n",
        "round 3, accepted ",
        ": lille, lyon took part; nice did not: struck\n",
        "lille disputed chunk 7 of nice's part 2 in attempt 1: wrong",
        "proven to have published a wrong merge: nice",
        "round 4, accepted ",
        "round 5, accepted ",
        "lyon took part; lille did not: silent; nice did not: struck",
        f"the final model: round 4. Of 5 merges it has the highest mean 'auc': 0.59.\n    {4:064x}",
        "auc, 11 scores: mean 0.61 after round 1, 0.59 after round 4 (lille 0.54, lyon 0.64)",
    ):
        assert line in text, f"{line}\n{text}"
