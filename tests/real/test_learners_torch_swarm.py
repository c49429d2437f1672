"""PyTorch in real swarms: what is wrong at one hospital, and several processes of one hospital."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from konsil.core.rules import StudySettings

if find_spec("torch") is None:
    if os.environ.get("CI", "").lower() == "true":
        raise ImportError("torch is missing in CI")
    pytest.skip("NOT CHECKED: torch is not installed", allow_module_level=True)

import torch

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

MEMBER = Path(__file__).with_name("torch_member.py")
END_S = 150.0  # for processes on a busy machine; each imports PyTorch


class Hospitals:
    """Training processes; all of them are ended when the test ends."""

    def __init__(self, root):
        self.root = root
        self.running = []

    def start(self, swarm, member, size, *options, examples=(1, 1)):
        rendezvous = self.root / f"rendezvous-{member}-{len(self.running)}"
        socket = swarm.directory(member) / "session.sock"
        started = []
        for rank in range(size):
            out = self.root / f"{member}-{rank}-{len(self.running)}.out"
            words = [str(rank), str(size), str(rendezvous), "aml", str(socket), "--examples"]
            with out.open("w") as said, out.with_suffix(".err").open("w") as errors:
                process = subprocess.Popen(
                    [sys.executable, str(MEMBER), *words, str(examples[rank]), *options],
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=errors,
                )
            started.append((process, out))
        self.running += started
        return started

    def until(self, started, event):
        """Wait until a process has said this."""
        process, out = started
        until_s = time.monotonic() + END_S
        while event not in out.read_text():
            assert process.poll() is None, out.with_suffix(".err").read_text()[-3000:]
            assert time.monotonic() < until_s, event
            time.sleep(0.1)

    def ends(self, started):
        """All words of each process, once it has ended."""
        until_s = time.monotonic() + END_S
        said = []
        for process, out in started:
            process.wait(max(until_s - time.monotonic(), 0.1))
            words = [json.loads(line) for line in out.read_text().splitlines()]
            assert words, out.with_suffix(".err").read_text()[-3000:]
            said.append(words)
        return said

    def close(self):
        for process, _ in self.running:
            process.kill()
            process.wait()


@pytest.fixture
def hospitals(site):
    made = Hospitals(site.root)
    yield made
    made.close()


def begun(site, members=("berlin", "bonn"), **settings):
    swarm = site.swarm(*members)
    swarm.start()
    defaults = {"every_steps": 3, "rounds": 3, "audit_fraction": 1.0, "silence_s": 60}
    swarm.propose(StudySettings(name="aml", **(defaults | settings)))
    return swarm


def merges(words):
    return [(word["round"], word["digest"], word["trace"]) for word in words if word["event"] == "merged"]


def test_what_is_wrong_at_one_hospital_gets_a_clear_error_and_stops_no_other(site, hospitals):
    swarm = begun(site, ("berlin", "bonn", "koeln"), rounds=1000, quorum=2, silence_s=10)
    started = [
        *hospitals.start(swarm, "berlin", 1, "--frozen", "1", "--pause", "0.2"),
        *hospitals.start(swarm, "bonn", 1, "--frozen", "1", "--pause", "0.2", examples=(2,)),
    ]
    hospitals.until(started[1], "joined")  # before that nobody knows the study's parameters
    wrong = [("--frozen", "1", "--wider", "0"), ("--frozen", "2")]
    refused = [each for options in wrong for each in hospitals.start(swarm, "koeln", 1, *options)]
    (*_, wider), (*_, other_base) = hospitals.ends(refused)
    assert wider["kind"] == other_base["kind"] == "SchemaMismatch"
    assert "'1.bias' has shape (5,) instead of (4,)" in wider["what"]
    assert "The frozen parts of the model differ: they do not travel" in other_base["what"]
    assert "the others go on" in other_base["what"]
    ((*_, bad),) = hospitals.ends(hospitals.start(swarm, "koeln", 1, "--frozen", "1", "--nan", "3"))
    assert bad["kind"] == "NonFinite"
    assert "Tensor '2.bias', shape (1,), holds at flat index 0 the value nan" in bad["what"]
    rounds = len(swarm.control("bonn").state().studies["aml"].history)
    state = swarm.wait("bonn", lambda state: len(state.studies["aml"].history) >= rounds + 3)
    for record in state.studies["aml"].history:
        assert set(record.roster) == {"berlin", "bonn"}
    assert state.studies["aml"].history[-1].absent["koeln"] == "left"
    traces = [merges([json.loads(line) for line in out.read_text().splitlines()]) for _, out in started]
    assert traces[0][:rounds] == traces[1][:rounds]


def require(device):
    """Skip where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no CUDA device")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_merges_of_four_hospitals_are_a_recomputation_on_the_cpu_bit_for_bit(site, hospitals, device, dtype):
    if device == "cpu" and dtype != "float32":
        pytest.skip("the CPU's half precision is tried elsewhere")
    require(device)
    members = ("aachen", "berlin", "bonn", "koeln")
    swarm = begun(site, members, rounds=5, quorum=4, min_members=4, every_steps=2)
    kept = site.root / "kept"
    kept.mkdir()
    options = ("--device", device, "--dtype", dtype, "--keep", str(kept))
    examples = dict(zip(members, (1, 2, 4, 9), strict=True))
    started = [hospitals.start(swarm, name, 1, *options, examples=(n,)) for name, n in examples.items()]
    said = hospitals.ends([each for one in started for each in one])
    assert all("ended" in {word["event"] for word in words} for words in said)
    assert len({str(merges(words)) for words in said}) == 1
    assert len(merges(said[0])) == 5
    weights = [2 * examples[name] for name in members]
    for number in range(1, 6):
        before = [dict(np.load(kept / f"{name}-{number}.before.npz")) for name in members]
        after = [dict(np.load(kept / f"{name}-{number}.after.npz")) for name in members]
        assert before[0]["0.weight"].tolist() != before[1]["0.weight"].tolist(), "each trained by itself"
        for key in before[0]:
            total = sum(w * as_doubles(each[key], dtype) for w, each in zip(weights, before, strict=True))
            expected = rounded(total / sum(weights), dtype)
            for each in after:
                assert each[key].tobytes() == expected.tobytes(), (number, key)


def as_doubles(values, dtype):
    if dtype == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def rounded(values, dtype):
    """To the nearest value of a dtype, of two the even one; bfloat16 as its bits."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint64)
    # From double in one step: 8 of 53 bits stay, as none of these values is too small for that.
    whole = (bits + (1 << 44) - 1 + ((bits >> 45) & 1)) >> 45 << 45
    return (whole.view(np.float64).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("device", "dtype", "settings"),
    [
        ("cpu", "float32", {"prox": 0.1, "scaffold": True, "weighting": "equal", "local": ("1.running_*",)}),
        ("cpu", "bfloat16", {}),
        ("cuda", "float32", {"prox": 0.1, "scaffold": True, "weighting": "equal", "local": ("1.running_*",)}),
    ],
)
def test_two_processes_of_a_hospital_are_one_member_with_one_model(site, hospitals, device, dtype, settings):
    require(device)
    swarm = begun(site, **settings)
    options = ("--dtype", dtype, "--device", device)
    both = hospitals.start(swarm, "berlin", 2, *options, examples=(5, 7))
    other = hospitals.start(swarm, "bonn", 1, *options, examples=(4,))
    first, second, alone = hospitals.ends([*both, *other])
    assert [words[0]["kind"] for words in (first, second, alone)] == ["Leading", "Following", "Swarm"]
    assert first[0]["member"] == second[0]["member"] == "berlin"
    assert first[0]["mu"] == second[0]["mu"] == settings.get("prox", 0)
    assert len({words[0]["trace"] for words in (first, second, alone)}) == 1
    assert len(merges(first)) == 3
    assert merges(first) == merges(second) == merges(alone)
    history = swarm.control("bonn").state().studies["aml"].history
    for record, word in zip(history, merges(second), strict=True):
        assert word[:2] == (record.number, record.digest)
        assert {name: entry.examples for name, entry in record.roster.items()} == {
            "berlin": 3 * (5 + 7),
            "bonn": 3 * 4,
        }
        assert set(record.scores) <= {"berlin", "bonn"}
    assert second[1]["members"] == {"berlin": 36, "bonn": 12}
    own = [
        [word["before"] for word in words if word["event"] == "merged"] for words in (first, second, alone)
    ]
    assert own[0] == own[1], "both train alike between merges, corrected by the same terms"
    assert own[0][0] != own[2][0]
    if settings:
        means = [[word["mean"] for word in words if word["event"] == "merged"] for words in (first, alone)]
        assert means[0] != means[1], "what the study keeps local stays each hospital's own"


@pytest.mark.parametrize("size", [2, 3])
def test_sessions_one_after_the_other_leave_nothing_behind_in_any_process(site, hospitals, size):
    swarm = begun(site, rounds=1, min_members=1, quorum=1)
    for words in hospitals.ends(hospitals.start(swarm, "berlin", size, "--times", "4", examples=(1, 2, 3))):
        held = [word for word in words if word["event"] == "held"]
        assert len(held) == 4, words[-1]
        assert held[3] == held[0]


def test_processes_wait_as_long_as_the_swarm_does_and_not_as_long_as_their_group_may(site, hospitals):
    swarm = begun(site, rounds=2)
    both = hospitals.start(swarm, "berlin", 2, "--impatient")
    time.sleep(12)  # much longer than a word may take
    assert all(process.poll() is None for process, _ in both)
    other = hospitals.start(swarm, "bonn", 1)
    for words in hospitals.ends([*both, *other]):
        assert words[-2]["event"] == "ended", words[-1]


def test_what_fails_in_the_first_process_fails_alike_in_the_others(site, hospitals):
    swarm = begun(site, rounds=50, min_members=1, quorum=1)
    for words in hospitals.ends(hospitals.start(swarm, "berlin", 2, "--nan", "6")):
        assert [word["event"] for word in words][-2:] == ["merged", "failed"]
        assert words[-1]["kind"] == "NonFinite"
        assert "Tensor '2.bias'" in words[-1]["what"]
    for words in hospitals.ends(hospitals.start(swarm, "berlin", 2, "--wider", "1")):
        assert (words[-1]["event"], words[-1]["kind"]) == ("failed", "SchemaMismatch")
    both = hospitals.start(swarm, "berlin", 2, "--away", "3", "--pause", "0.3")
    hospitals.until(both[1], "merged")
    swarm.kill("berlin")
    for words in hospitals.ends(both):
        assert (words[-1]["event"], words[-1]["kind"]) == ("failed", "NodeUnreachable")


def test_a_process_that_fails_by_itself_ends_the_others_and_stops_no_hospital(site, hospitals):
    swarm = begun(site, rounds=4, min_members=1, quorum=1, silence_s=5)
    for failing in (0, 1):
        both = hospitals.start(swarm, "berlin", 2, "--fail", f"{failing}:2", "--linger", "8")
        ended = hospitals.ends(both)
        assert ended[failing][-1]["kind"] == "ValueError"
        found = ended[1 - failing][-1]
        assert found["event"] == "failed"
        assert found["kind"] in {"StudyError", "RuntimeError"}, found  # ours, or of the gradients' exchange
    (words,) = hospitals.ends(hospitals.start(swarm, "bonn", 1))
    assert words[-2]["event"] == "ended"
    assert words[-2]["why"]
