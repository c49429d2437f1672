"""Many real members on one machine, and a few for long: do all take part, and does anything grow?

    benchmarks/load.py                          both, as below
    benchmarks/load.py many [--members 32] [--rounds 20] [--mb 1]
    benchmarks/load.py long [--members 4] [--rounds 500] [--mb 1] [--every 10] [--allocator held]

Every member is a node of its own (`konsil node start`, mutual TLS, ledger, journal and audit on) and a
training process of its own with `konsil.join`; training processes are forked from one that has imported
everything, as dozens of interpreters that start at once would measure Python. Training at member i (1..n)
adds i to every parameter of a model of zeros, the merge is the plain mean, so a true merge of all adds
(n + 1) / 2 a round: a member that missed one, or merged with a subset, shows another value. Every member
checks the whole model every round; figures count only when all agree.

- seconds a round: from the first member's call of round k to that of round k + 1, without the first round
- start-up: from the launch of the nodes until all are ready, until each is connected to all others, and until
  the first merge is back at a member
- memory: proportional set size (shared pages divided by those who share them); heap: its anonymous part

``long`` looks at memory, files and threads of every process between two rounds. What a study's history takes
for each accepted round is no leak: it is measured on a state that a member's journal was replayed to, and
subtracted from the slope that is fitted through a node's heap. The rest must be below ``GROWTH_BYTES``.

A heap is not what is held. The GNU C library keeps what was freed below the last piece in use: the buffers of
one round, held in place by a few bytes behind them, may stay for hundreds of rounds and then go again. That
is a step up or down of 1 to 5 MB with models of 1 MB, at another round and node each time, and of up to
100 MB with models of 100 MB; over 1,500 rounds it is a plateau. ``--allocator usual`` shows it, and judges
nothing. Without it the nodes run with ``HELD_ALONE``: what is let go of leaves the heap.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

from konsil.core.rules import StudySettings
from konsil.evaluation.loopback import LoopbackSwarm
from konsil.identity.ledger_key import verify as is_signature
from konsil.ledger.verify import verify
from konsil.node.config import read_config
from looking import Growth, Look, Peak, deep_bytes
from many_trainings import ROUND_S, STUDY, Trainers, Work

HELD_ALONE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""The GNU C library's allocator set so that a heap is what is held: one arena for all threads, every piece
of 128 KiB or more a mapping of its own, which ends with it. It begins with that bound, but raises it to the
size of the largest mapping that was let go of: then the buffers for chunks lie in the heap, among what stays.
"""

SETTLED_ROUNDS = 350
"""By then what is bounded is full: SQLite's pages in memory (2 MB, the slowest), the ledger's last 1,024
entries, and thread pools. With more members or scores a round it is sooner."""

GROWTH_BYTES = 256
"""What a node's heap may grow by in a round for each member, beyond the history, of which the ledger keeps
every round.

With four members 10 MB in a study of 10,000 rounds, which nobody notices. The smallest real leak, a forgotten
task, connection or view, is a kilobyte or more for each of several requests that every other member makes a
round; a forgotten model is the model. The wear of the heap by what is small was 0.1 to 0.7 kB a round with
four members and up to 1.5 kB with eight in 500 rounds; in 1,200 and more it was 0.3 kB with either.
"""

LEAST_GROWTH_BYTES = 1024
"""... and in small swarms at least this much: a heap's wear does not go down with the members."""

TOLERATED = 3
"""More files or threads than before that say nothing: a descriptor on its way, a pool's last threads."""

MIN_LOOKS = 4
"""Fewer looks than this say nothing about growth."""


# --- the work ------------------------------------------------------------------------------------


def history_bytes(swarm: LoopbackSwarm) -> float:
    """What one accepted round takes at every node, in bytes: its record, and its digest that is remembered.

    The state is one that was replayed, as a node's is: one that was told shares less among its records.
    """
    config = read_config(swarm.directory(swarm.members[0]))
    history = verify(swarm.genesis, config.ledger_file, is_signature).state.studies[STUDY].history
    digests = [reference for record in history for reference in weakref.getweakrefs(record)]
    assert len(digests) == len(history)
    return deep_bytes((history, digests), set()) / len(history)


class Load:
    """One run: a swarm, its training processes, and what was seen of them. Use ``run``."""

    def __init__(self, work: Work, *, held_alone: bool = False) -> None:
        """``held_alone``: a node's heap is what it holds; else also what the allocator keeps for later."""
        self.work = work
        self.environment = HELD_ALONE if held_alone else {}
        self.names = tuple(f"m{number:02}" for number in range(1, work.members + 1))
        self.firsts: dict[int, float] = {}
        self.looks: dict[int, dict[str, Look]] = {}
        self.facts: dict[str, Any] = asdict(work)
        self.peak = Peak()

    def run(self) -> dict[str, Any]:
        """The figures.

        Raises:
            AssertionError: a value was wrong, or somebody failed or hung.
        """
        root = Path(tempfile.mkdtemp(prefix="konsil-"))
        self.facts["load_before"] = os.getloadavg()[0]
        try:
            with LoopbackSwarm(root, self.names, environment=self.environment) as swarm:
                self._start(swarm)
                sockets = [swarm.directory(name) / "session.sock" for name in self.names]
                with (
                    self.peak,
                    Trainers(sockets, self.work, root / "trainers.log", self.environment) as trainers,
                ):
                    self._follow(swarm, trainers)
                self._sum_up(swarm)
        finally:
            shutil.rmtree(root)
        return self.facts

    def _start(self, swarm: LoopbackSwarm) -> None:
        self.began_s = time.time()
        swarm.start()
        self.facts["ready_s"] = time.time() - self.began_s
        others = len(self.names) - 1
        until_s = time.monotonic() + ROUND_S
        for name in self.names:
            while sum(peer.connected for peer in swarm.control(name).node().peers) < others:
                assert time.monotonic() < until_s, f"{name} is not connected:\n{swarm.log_tail(name)}"
                time.sleep(0.05)  # nobody tells when a node's connections change
        self.facts["connected_s"] = time.time() - self.began_s
        self.facts["connected_cpu_s"] = sum(Look.at(swarm.pid(name)).cpu_s for name in self.names)
        swarm.propose(
            StudySettings(
                name=STUDY,
                min_members=len(self.names),
                quorum=len(self.names),
                rounds=self.work.rounds,
                every_steps=1,
                weighting="equal",
                audit_fraction=self.work.audit,
            )
        )
        self.facts["agreed_s"] = time.time() - self.began_s

    def _follow(self, swarm: LoopbackSwarm, trainers: Trainers) -> None:
        pids = {name: swarm.pid(name) for name in self.names}
        said = dict.fromkeys(range(1, len(self.names) + 1), 0)
        for word in trainers.words():
            if "pids" in word:
                pids |= {f"training {n}": pid for n, pid in zip(self.names, word["pids"], strict=True)}
                self.peak.pids = tuple(pids.values())
                continue
            call, member = word["call"], word["member"]
            assert word["right"], f"member {member} holds a wrong model at its call {call}"
            assert call == said[member] + 1
            said[member] = call
            self.firsts.setdefault(call, word["at_s"])
            if self.work.looked_at(call - 1) and min(said.values()) == call:  # all rest between two rounds
                self.looks[call - 1] = {name: Look.at(pid) for name, pid in pids.items()}
        assert set(said.values()) == {self.work.rounds + 1}, f"not all took part in every round: {said}"

    def _sum_up(self, swarm: LoopbackSwarm) -> None:
        times = [self.firsts[number] for number in sorted(self.firsts)]
        rounds = sorted(
            after - before
            for number, (before, after) in enumerate(itertools.pairwise(times), start=1)
            if number > 1 and not self.work.looked_at(number - 1)
        )
        self.facts |= {
            "first_merge_s": times[1] - self.began_s,
            "round_s": statistics.median(rounds),
            "round_s_p95": rounds[math.ceil(0.95 * len(rounds)) - 1],
            "round_s_most": rounds[-1],
            "nodes_cpu_s": sum(Look.at(swarm.pid(name)).cpu_s for name in self.names),
            "peak_bytes": self.peak.bytes,
            "history_bytes": history_bytes(swarm),
            "log_bytes": max((swarm.directory(n) / "node.log").stat().st_size for n in self.names),
            "warnings": warnings_in(swarm),
            "load_after": os.getloadavg()[0],
            "growth": {name: asdict(growth) for name, growth in self.growths().items()},
        }

    def growths(self) -> dict[str, Growth]:
        """What grew in each process from round to round, once it had settled."""
        since = min(SETTLED_ROUNDS, self.work.rounds * 7 // 10)
        numbers = [number for number in sorted(self.looks) if number >= since]
        if len(numbers) < MIN_LOOKS:
            return {}
        return {
            name: Growth.over(numbers, [self.looks[number][name] for number in numbers])
            for name in self.looks[numbers[0]]
        }


def warnings_in(swarm: LoopbackSwarm) -> dict[str, int]:
    """What the nodes' logs warn of, and how often."""
    found: dict[str, int] = {}
    for name in swarm.members:
        for line in (swarm.directory(name) / "node.log").read_text(errors="replace").splitlines():
            if "[warning" in line or "[error" in line:
                what = line.partition("] ")[2].partition(" why=")[0][:80]
                found[what] = found.get(what, 0) + 1
    return found


def _beyond(facts: dict[str, Any]) -> int:
    return max(LEAST_GROWTH_BYTES, GROWTH_BYTES * int(facts["members"]))


def leaks(facts: dict[str, Any]) -> list[str]:
    """Sentences on what grew more than it may; empty where all is flat."""
    found = []
    beyond = _beyond(facts)
    for name, growth in facts["growth"].items():
        # A training process keeps no history.
        allowed = beyond + (0 if name.startswith("training") else facts["history_bytes"])
        if growth["heap_bytes"] > allowed:
            found.append(f"{name}: heap grows by {growth['heap_bytes']:.0f} bytes a round, not {allowed:.0f}")
        if growth["shared_bytes"] > beyond:
            found.append(f"{name}: memory files grow by {growth['shared_bytes']:.0f} bytes a round")
        found += [
            f"{name}: {growth[what]} more {what}" for what in ("files", "threads") if growth[what] > TOLERATED
        ]
    return found


# --- printing ------------------------------------------------------------------------------------


def print_many(facts: dict[str, Any], load: Load) -> None:
    n = facts["members"]
    last = load.looks[max(load.looks)]
    nodes = [last[name] for name in load.names]
    print(
        f"{n} members, {facts['rounds']} rounds of {facts['megabytes']:g} MB, every value right; load "
        f"{facts['load_before']:.1f} before, {facts['load_after']:.1f} after\n"
        f"  seconds a round: median {facts['round_s']:.2f}, p95 {facts['round_s_p95']:.2f}, "
        f"most {facts['round_s_most']:.2f}\n"
        f"  start-up: ready {facts['ready_s']:.1f} s, all {n * (n - 1) // 2} connections "
        f"{facts['connected_s']:.1f} s ({facts['connected_cpu_s']:.1f} CPU s), all agreed "
        f"{facts['agreed_s']:.1f} s, first merge {facts['first_merge_s']:.1f} s\n"
        f"  memory: peak of all processes {facts['peak_bytes'] / 1e9:.2f} GB; between rounds a node "
        f"{statistics.median(look.pss_bytes for look in nodes) / 1e6:.0f} MB\n"
        f"  nodes' CPU: {facts['nodes_cpu_s']:.0f} s in all; a node has at most "
        f"{max(look.threads for look in nodes)} threads and {max(look.files for look in nodes)} open files\n"
        f"  the longest log: {facts['log_bytes'] / 1e3:.0f} kB; warnings: {facts['warnings'] or 'none'}",
        flush=True,
    )


def print_long(facts: dict[str, Any], load: Load) -> None:
    print(
        f"{facts['members']} members, {facts['rounds']} rounds of {facts['megabytes']:g} MB, all right; "
        f"{facts['round_s']:.3f} s a round (p95 {facts['round_s_p95']:.3f}); load "
        f"{facts['load_before']:.1f} before, {facts['load_after']:.1f} after\n"
        f"{'round':>6}  each node's PSS and heap in MB, open files, threads; the first training process"
    )
    for number, looks in sorted(load.looks.items()):
        shown = [*load.names, f"training {load.names[0]}"]
        cells = [
            f"{each.pss_bytes / 1e6:6.1f} {each.heap_bytes / 1e6:6.1f} {each.files:3} {each.threads:3}"
            for each in (looks[name] for name in shown)
        ]
        print(f"{number:6}  {' | '.join(cells)}")
    print(f"history: {facts['history_bytes']:.0f} bytes a round in every node's state, of which none is lost")
    for name, growth in facts["growth"].items():
        heap, shared = growth["heap_bytes"], growth["shared_bytes"]
        print(f"{name}: heap {heap:+.0f} bytes a round, memory files {shared:+.0f}")
    beyond = _beyond(facts)
    found = leaks(facts) or [f"flat: nothing grows by more than the history and {beyond} bytes a round"]
    print("\n".join(found) if load.environment else "not judged: what the allocator keeps is in these heaps")
    print(
        f"longest log {facts['log_bytes'] / 1e3:.0f} kB; warnings: {facts['warnings'] or 'none'}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("many", "long", "both"), default="both")
    parser.add_argument("--members", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--mb", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=0, help="rounds between two looks at all processes")
    parser.add_argument("--audit", type=float, default=0.05, help="fraction of others' chunks recomputed")
    parser.add_argument("--score", action="store_true", help="every member scores every merge")
    parser.add_argument("--allocator", choices=("held", "usual"), default="held", help="of nodes in ``long``")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    status = 0
    for what, members, rounds, every, show in (
        ("many", 32, 20, 5, print_many),
        ("long", 4, 500, 10, print_long),
    ):
        if options.what not in {what, "both"}:
            continue
        work = Work(
            options.members or members,
            options.rounds or rounds,
            options.mb,
            options.every or every,
            options.audit,
            options.score,
        )
        judged = what == "long" and options.allocator == "held"
        load = Load(work, held_alone=judged)
        facts = load.run()
        if options.json:
            looks = {n: {name: asdict(look) for name, look in at.items()} for n, at in load.looks.items()}
            print(json.dumps({"what": what, **facts, "looks": looks}), flush=True)
        else:
            show(facts, load)
        status |= bool(judged and leaks(facts))
    sys.exit(status)


if __name__ == "__main__":
    main()
