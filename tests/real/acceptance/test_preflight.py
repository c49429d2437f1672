"""`konsil doctor` at real nodes: what is not right is told before training, with what to do."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

from konsil.node.config import read_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

THREE = ("berlin", "bonn", "koeln")


def findings(lab, name: str, *words: str) -> tuple[bool, dict[str, list[tuple[str, str, str]]]]:
    """What doctor found: whether nothing fails, and (level, what, what to do) by what was checked."""
    ended = lab.typed(name, "doctor", "--json", *words)
    said = json.loads(ended.stdout)
    assert said["ok"] == (ended.returncode == 0)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for each in said["findings"]:
        assert each["level"] == "ok" or each["do"], "what is not right comes with what to do"
        found.setdefault(each["check"], []).append((each["level"], each["what"], each["do"]))
    return said["ok"], found


def test_before_training_doctor_names_clocks_versions_lines_and_models_that_do_not_fit(
    lab, environment, wrong_clock
):
    four = (*THREE, "lyon")
    lab.make(*four, start=False)
    lab.swarm.start(["berlin"])
    lab.start_changed("bonn", "version", "0.0.9")
    with environment(**wrong_clock(200)):
        lab.swarm.start(["koeln"])
    lab.swarm.members = THREE
    lab.study(rounds=1)
    lab.train()
    lab.ends()

    right, other = lab.site.root / "right.safetensors", lab.site.root / "other.safetensors"
    lab.konsil("berlin", "study", "model", "aml", "--out", str(right), "--now")
    save_file({"weights": np.zeros(7, np.float32)}, other)
    ok, found = findings(lab, "berlin", "--model", str(right))
    assert not ok
    assert found["koeln"][0][0] == "fail"
    assert "its clock is 200." in found["koeln"][0][1] or "its clock is 199." in found["koeln"][0][1]
    assert found["koeln"][0][1].endswith("ahead")
    assert "run NTP at both" in found["koeln"][0][2]
    assert found["bonn"] == [("warn", "runs konsil 0.0.9, this node 0.1.0", "Update the older one.")]
    assert found["lyon"][0][0] == "warn"
    assert "Does a firewall stand between?" in found["lyon"][0][2]
    assert found["model"] == [("ok", f"{right} has the schema of study 'aml'", "")]
    assert {
        found[check][0][0] for check in ("config", "keys", "card", "genesis", "port", "certificate", "ledger")
    } == {"ok"}

    _, found = findings(lab, "bonn", "--model", str(other))
    assert ("fail", "runs konsil 0.0.9, this is 0.1.0") in [each[:2] for each in found["node"]]
    assert found["model"][0][:2] == ("warn", f"{other} has another schema than study 'aml'.")
    # The operator is away: nothing could go on the ledger.
    lab.swarm.stop("berlin")
    ok, found = findings(lab, "koeln")
    assert not ok
    assert found["ledger"][0][:2] == (
        "fail",
        "'berlin', who serves the ledger, does not answer: nothing new is taken.",
    )
    lab.swarm.start(["berlin"])
    lab.intact(*THREE)


def test_before_the_node_runs_doctor_names_the_port_the_permissions_and_the_disk(lab):
    lab.make(*THREE, start=False)
    bonn = lab.swarm.directory("bonn")
    ok, found = findings(lab, "bonn")
    assert ok
    host, port = read_config(bonn).node.listen.split(":")
    with socket.create_server((host, int(port))):
        ok, found = findings(lab, "bonn")
    assert not ok
    assert found["port"][0][:2] == (
        "fail",
        f"{host}:{port} cannot be listened on: Address already in use.",
    )
    (bonn / "keys").chmod(0o755)
    ok, found = findings(lab, "bonn")
    assert (ok, found["directory"][0][2]) == (False, f"chmod 700 {bonn / 'keys'}")
    (bonn / "keys").chmod(0o700)

    mount = [shutil.which("mount") or "/bin/mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(bonn)]
    kept = bonn.with_name("kept")
    shutil.copytree(bonn, kept)
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        shutil.copytree(kept, bonn, dirs_exist_ok=True)
        bonn.chmod(0o700)
        ok, found = findings(lab, "bonn")
    finally:
        subprocess.run([shutil.which("umount") or "/bin/umount", str(bonn)], check=True)
    assert not ok
    assert found["disk"][0][0] == "fail"
    assert "0.0 GB free" in found["disk"][0][1]
    assert "Free disk space" in found["disk"][0][2]


def test_a_certificate_that_its_peers_cannot_take_yet_is_told_at_both_ends(lab, environment, wrong_clock):
    """A clock that is an hour ahead dates certificates into the future."""
    lab.make("berlin", "bonn", start=False)
    lab.swarm.start(["berlin"])
    with environment(**wrong_clock(3600)):
        lab.swarm.start(["bonn"])
    seen: dict[str, str] = {}

    def told(name: str, peer: str) -> bool:
        seen[name] = " ".join(
            each for each in lab.swarm.control(name).node().problems if each.startswith(peer)
        )
        return "compare both machines' clocks: `konsil doctor`" in seen[name]

    lab.until(lambda: told("berlin", "bonn") and told("bonn", "berlin"), seen)
    assert "certificate is not yet valid" in seen["berlin"]
    assert "certificate has expired" in seen["bonn"]
    ok, found = findings(lab, "bonn")
    assert not ok
    assert found["ledger"][0][0] == "fail"
    # With the right time it is the same node, and all is well.
    lab.swarm.stop("bonn")
    lab.swarm.start(["bonn"])
    lab.study(rounds=1, quorum=2)
    lab.train()
    lab.ends()
    lab.intact()
