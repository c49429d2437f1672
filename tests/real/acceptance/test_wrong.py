"""Wrong set-ups: each ends in one error that says what to do, within a deadline, and never in a hang."""

from __future__ import annotations

import re
import shutil
import time

import pytest

from konsil.core.rules import Agree
from konsil.node.config import read_config
from konsil.node.genesis import found, keep_card, read_card_file, write_genesis

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]

THREE = ("berlin", "bonn", "koeln")
SOON_S = 25.0
"""Start of Python on a busy machine included; the product's own waits here are 10 s."""


def fails(lab, name: str, *words: str) -> str:
    """The one error that a command ends with, as its reader sees it, in one line."""
    ended = lab.typed(name, *words, timeout_s=SOON_S)
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    assert (
        len(
            re.findall(
                r"^\w+(?:Error|Refused|Busy|Unreachable|Corrupt|Mismatch)?: ", ended.stderr, re.MULTILINE
            )
        )
        == 1
    )
    assert len(ended.stderr.strip().splitlines()) >= 2, "what happened, and what is safe or to be done"
    return " ".join(ended.stderr.split())


def script_fails(lab, name: str, study: str = "aml", **options: object) -> str:
    """The error that a training script ends with."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    began_s = time.monotonic()
    end = lab.site.train(lab.swarm, study, name, 1.0, *words).end()[-1]
    assert end["event"] == "failed", end
    assert time.monotonic() - began_s < SOON_S
    return f"{end['kind']}: {end['what']}"


def test_before_a_node_runs_what_is_wrong_is_said_at_once(lab):
    lab.make(*THREE, start=False)
    bonn = lab.swarm.directory("bonn")
    assert "No node answers at" in fails(lab, "bonn", "node", "status")
    assert "Start it with `konsil node start`" in fails(lab, "bonn", "study", "list")
    assert "Start it with `konsil node start`" in script_fails(lab, "bonn")
    for words, said in (
        (("study", "propose", str(bonn / "nothing.toml")), "nothing.toml"),
        (("study", "check", str(bonn / "nothing.safetensors")), "nothing.safetensors"),
        (("swarm", "found", "lungs", str(bonn / "nothing.card.json")), "nothing.card.json"),
    ):
        assert said in fails(lab, "bonn", *words)

    # The key of another member: the ledger would never take a call of this node.
    shutil.copy(lab.swarm.directory("koeln") / "keys" / "ledger.pem", bonn / "keys" / "ledger.pem")
    said = fails(lab, "bonn", "node", "start")
    assert "by another key" in said
    assert "Use the directory whose card the members have" in said


def test_members_who_founded_with_different_cards_are_told_that_theirs_are_different_swarms(lab):
    lab.make(*THREE, start=False)
    config = read_config(lab.swarm.directory("bonn"))
    cards = [read_card_file(read_config(lab.swarm.directory(name)).card_file) for name in ("berlin", "bonn")]
    for card in cards:
        keep_card(card, config.cards_dir)
    config.genesis_file.unlink()
    write_genesis(found("loopback", cards), config.genesis_file)
    lab.swarm.start()
    told: dict[str, str] = {}

    def another_swarm() -> bool:
        told["bonn"] = " ".join(lab.swarm.control("bonn").node().problems)
        return "belongs to another swarm" in told["bonn"]

    lab.until(another_swarm, told)
    assert "use the same cards" in told["bonn"]
    assert "Compare the digests that `konsil swarm found` printed" in told["bonn"]


def test_members_of_another_version_of_the_protocol_are_told_to_install_the_same(lab):
    lab.make("berlin", "bonn", start=False)
    lab.swarm.start(["berlin"])
    lab.start_changed("bonn", "protocol", "1")
    told: dict[str, str] = {}

    def another_version() -> bool:
        told["berlin"] = " ".join(lab.swarm.control("berlin").node().problems)
        return "speaks version" in told["berlin"]

    lab.until(another_version, told)
    assert "Install the same version of Konsil at every member" in told["berlin"]


def test_wrong_studies_and_scripts_end_in_an_error_and_the_right_ones_go_on(lab, tmp_path):
    lab.make(*THREE)
    for name, text, said in (
        ("typo", 'nmae = "aml"', "nmae"),
        ("no_interval", 'name = "aml"\nmin_members = 2', "every_steps"),
        ("rule", 'name = "aml"\nevery_steps = 1\nrule = "average"', "average"),
        ("krum", 'name = "aml"\nevery_steps = 1\nmin_members = 3\nrule = "multi_krum"', "5 members"),
        ("stranger", 'name = "aml"\nevery_steps = 1\nmembers = ["berlin", "paris"]', "paris"),
        ("many", 'name = "aml"\nevery_steps = 1\nmin_members = 9', "min_members"),
    ):
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        assert said in fails(lab, "bonn", "study", "propose", str(file))
    assert "nothing" in fails(lab, "bonn", "study", "status", "nothing")
    assert "nothing" in script_fails(lab, "bonn", "nothing")

    lab.study(rounds=2, members=("berlin", "bonn"), min_members=2)
    assert "koeln has not agreed to study 'aml'" in script_fails(lab, "koeln")
    lab.train("berlin")
    lab.wait("berlin", lambda study: study.initial)
    said = script_fails(lab, "bonn", elements=999)
    assert said.startswith("SchemaMismatch: ")
    assert "'weights' has shape (999,) instead of (1000,)" in said
    assert "Build the model as the proposer does" in said
    agreed = lab.on_ledger().settings_digest
    with pytest.raises(Exception, match="'koeln' is not among them"):
        lab.swarm.control("koeln").call(Agree("aml", agreed))

    lab.train("bonn")
    lab.ends()
    history = lab.intact("berlin", "bonn")
    assert all(set(record.roster) == {"berlin", "bonn"} for record in history)
