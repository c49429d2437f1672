"""Many real members on one machine, and a few for long: do all take part, and does anything grow?

    benchmarks/load.py                          both, as below
    benchmarks/load.py many [--members 32] [--rounds 20] [--mb 1]
    benchmarks/load.py long [--members 4] [--rounds 500] [--mb 1] [--every 25]

Every member is a node of its own (`konsil node start`, mutual TLS, ledger, journal and audit on) and a training
process of its own with `konsil.join`; training processes are forked from one that has imported everything, as
dozens of interpreters that start at once would measure Python. Training at member i (1..n) adds i to every
parameter of a model of zeros, the merge is the plain mean, so a true merge of all adds (n + 1) / 2 a round: a
member that missed one, or merged with a subset, shows another value. Every member checks the whole model every
round; figures count only when all agree.

- seconds a round: from the first member's call of round k to that of round k + 1; the first round is left out
- start-up: from the launch of the nodes until all are ready, until each is connected to all others, and until
  the first merge is back at a member
- memory: proportional set size (shared pages divided by those who share them), heap: its anonymous part

``long`` samples memory, files and threads of every process between two rounds. What a study's history takes for
each accepted round is no leak: it is measured on the very state that the members hold, and subtracted from the
slope that is fitted through a node's heap. The rest must be below ``GROWTH_BYTES``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from konsil.core.rules import StudySettings
from konsil.evaluation.loopback import LoopbackSwarm

TENSORS = 10
STUDY = "load"

SETTLED_ROUNDS = 350
"""By then what is bounded is full: SQLite's pages in memory (2 MB, the slowest), the ledger's last 1,024 entries,
thread pools and the allocator's arenas. With more members or scores a round it is sooner."""

GROWTH_BYTES = 4096
"""What a node's heap may grow by in a round beyond the history, of which the ledger keeps every round.

A page a round: 40 MB in a study of 10,000 rounds, which nobody notices. The smallest real leak, a forgotten
task, connection or view, is a few kilobytes for each of several requests a round; a forgotten model is the
model. The allocator's own wear is below this bound from some hundred rounds on.
"""

MIN_LOOKS = 4
"""Fewer looks than this say nothing about growth."""

REST_S = 0.3
"""What training takes longer in a round before which processes are looked at, so that all are at rest."""

ROUND_S = 120.0
"""A round that takes longer than this has hung."""


@dataclass(frozen=True)
class Work:
    """What is done. ``every``: so many rounds lie between two looks at all processes; 0 for none."""

    members: int
    rounds: int
    megabytes: float
    every: int = 0
    audit: float = 0.05
    score: bool = False

    def looked_at(self, round_number: int) -> bool:
        """Whether all processes are looked at after this round."""
        return bool(self.every) and 0 < round_number < self.rounds and round_number % self.every == 0


# --- one training process ------------------------------------------------------------------------


def train(socket: str, number: int, work: Work) -> None:
    """One member's training: says a line of JSON at every call."""
    import numpy as np  # noqa: PLC0415 - the parent needs none of this

    import konsil  # noqa: PLC0415

    elements = int(work.megabytes * 1e6 / 4 / TENSORS)
    model = {f"t{i}": np.zeros(elements, np.float32) for i in range(TENSORS)}
    with konsil.join(STUDY, model, node=socket) as swarm:
        for call in range(1, work.rounds + 2):
            at_s = time.time()
            expected = np.float32((work.members + 1) / 2 * (call - 1))
            right = all(bool((array == expected).all()) for array in model.values())
            right = right and (call == 1 or len(swarm.last.members) == work.members)
            line = json.dumps({"member": number, "call": call, "at_s": at_s, "right": right})
            os.write(1, line.encode() + b"\n")  # whole: below PIPE_BUF, and all members write into one pipe
            if swarm.finished:
                break
            for array in model.values():
                array += number
            if work.looked_at(call - 1):
                time.sleep(REST_S)
            if swarm.step(examples=1) and work.score:
                swarm.score(examples=1, loss=1 / call)


def train_all(sockets: Sequence[str], work: Work) -> None:
    """Import once, then be one training process a member; says their process ids first."""
    import konsil.session.joining  # noqa: PLC0415 - the point of this process: imported once, for all

    assert konsil.session.joining
    children = []
    for number, socket in enumerate(sockets, start=1):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(socket, number, work)
                status = 0
            except BaseException:  # noqa: BLE001 - it is printed, and the process ends
                import traceback  # noqa: PLC0415

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGKILL) for child in children])
    os.write(1, json.dumps({"pids": children}).encode() + b"\n")
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    sys.exit(1 if failed else 0)


class Trainers:
    """The training processes of all members, and what they say. Use ``with``: none is left afterwards."""

    def __init__(self, sockets: Sequence[Path], work: Work, log: Path) -> None:
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--train", json.dumps([str(path) for path in sockets]),
                 json.dumps(asdict(work))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        self._log = log
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    def words(self) -> Any:
        """Every word of every member until the last has ended.

        Raises:
            AssertionError: nothing came for ``ROUND_S``, or a member's training failed; with its log.
        """
        while True:
            assert self._selector.select(ROUND_S), f"nothing was said for {ROUND_S:g} s:\n{self.errors()}"
            data = os.read(self._pipe, 1 << 16)
            if not data:
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from map(json.loads, lines)
        assert self._process.wait(ROUND_S) == 0, f"a member's training failed:\n{self.errors()}"

    def errors(self) -> str:
        """The end of what they printed on standard error."""
        return self._log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()  # it ends its children first
        self._process.wait()
        self._selector.close()
        assert self._process.stdout is not None
        self._process.stdout.close()


# --- looking at processes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """A process at one moment, as the kernel sees it."""

    pss_bytes: int
    heap_bytes: int
    rss_bytes: int
    files: int
    threads: int
    cpu_s: float

    @classmethod
    def at(cls, pid: int) -> Look:
        """Look at a process that runs."""
        place = Path(f"/proc/{pid}")
        sizes = dict.fromkeys(("Pss", "Pss_Anon", "Rss"), 0)
        for line in (place / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return cls(
            sizes["Pss"],
            sizes["Pss_Anon"],
            sizes["Rss"],
            files=len(list((place / "fd").iterdir())),
            threads=int(fields[17]),
            cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        )


def slope(numbers: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs, which a few outliers do not turn."""
    pairs = itertools.combinations(zip(numbers, values, strict=True), 2)
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def deep_bytes(value: Any, seen: set[int]) -> int:
    """What a value of the ledger's state takes in a Python process, with all that hangs on it."""
    if id(value) in seen or value is None or isinstance(value, bool):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(deep_bytes(k, seen) + deep_bytes(v, seen) for k, v in value.items())
    if isinstance(value, list | tuple):
        return size + sum(deep_bytes(each, seen) for each in value)
    fields = getattr(value, "__struct_fields__", ())
    return size + sum(deep_bytes(getattr(value, field), seen) for field in fields)


def history_bytes(swarm: LoopbackSwarm) -> float:
    """What one accepted round takes in the state that every node holds, in bytes."""
    history = swarm.control(swarm.members[0]).state().studies[STUDY].history
    return deep_bytes(history, set()) / len(history)


# --- the work ------------------------------------------------------------------------------------


class Load:
    """One run: a swarm, its training processes, and what was seen of them. Use ``run``."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.names = tuple(f"m{number:02}" for number in range(1, work.members + 1))
        self.firsts: dict[int, float] = {}
        self.looks: dict[int, dict[str, Look]] = {}
        self.facts: dict[str, Any] = asdict(work)

    def run(self) -> dict[str, Any]:
        """The figures.

        Raises:
            AssertionError: a value was wrong, or somebody failed or hung.
        """
        root = Path(tempfile.mkdtemp(prefix="konsil-"))
        self.facts["load_before"] = os.getloadavg()[0]
        try:
            with LoopbackSwarm(root, self.names) as swarm:
                self._start(swarm)
                sockets = [swarm.directory(name) / "session.sock" for name in self.names]
                with Trainers(sockets, self.work, root / "trainers.log") as trainers:
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
            "peak_bytes": max(
                (sum(look.pss_bytes for look in looks.values()) for looks in self.looks.values()), default=0
            ),
            "history_bytes": history_bytes(swarm),
            "log_bytes": max((swarm.directory(n) / "node.log").stat().st_size for n in self.names),
            "warnings": warnings_in(swarm),
            "load_after": os.getloadavg()[0],
            "growth": {name: asdict(growth) for name, growth in self.growths().items()},
        }

    def growths(self) -> dict[str, Growth]:
        """What grew in each process from round to round, once it had settled."""
        since = min(SETTLED_ROUNDS, self.work.rounds // 2)
        numbers = [number for number in sorted(self.looks) if number >= since]
        if len(numbers) < MIN_LOOKS:
            return {}
        return {
            name: Growth.over(numbers, [self.looks[number][name] for number in numbers])
            for name in self.looks[numbers[0]]
        }


@dataclass(frozen=True)
class Growth:
    """What grew in a process. ``heap_bytes``, ``pss_bytes``: a round, by the fitted line."""

    heap_bytes: float
    pss_bytes: float
    files: int
    threads: int

    @classmethod
    def over(cls, numbers: Sequence[int], looks: Sequence[Look]) -> Growth:
        """Through looks at the same process after these rounds.

        Files and threads may vary by what happens just then: what counts is whether the least of the second
        half is more than the most of the first.
        """
        half = len(looks) // 2

        def beyond(of: Callable[[Look], int]) -> int:
            return max(0, min(map(of, looks[half:])) - max(map(of, looks[:half])))

        return cls(
            slope(numbers, [look.heap_bytes for look in looks]),
            slope(numbers, [look.pss_bytes for look in looks]),
            files=beyond(lambda look: look.files),
            threads=beyond(lambda look: look.threads),
        )


def warnings_in(swarm: LoopbackSwarm) -> dict[str, int]:
    """What the nodes' logs warn of, and how often."""
    found: dict[str, int] = {}
    for name in swarm.members:
        for line in (swarm.directory(name) / "node.log").read_text(errors="replace").splitlines():
            if "[warning" in line or "[error" in line:
                what = line.partition("] ")[2].partition(" why=")[0][:80]
                found[what] = found.get(what, 0) + 1
    return found


def leaks(facts: dict[str, Any]) -> list[str]:
    """Sentences on what grew more than it may; empty where all is flat."""
    found = []
    for name, growth in facts["growth"].items():
        # A training process keeps no history.
        allowed = GROWTH_BYTES + (0 if name.startswith("training") else facts["history_bytes"])
        if growth["heap_bytes"] > allowed:
            found.append(f"{name}: heap grows by {growth['heap_bytes']:.0f} bytes a round, not {allowed:.0f}")
        found += [f"{name}: {growth[what]} more {what}" for what in ("files", "threads") if growth[what]]
    return found


# --- printing ------------------------------------------------------------------------------------


def print_many(facts: dict[str, Any], load: Load) -> None:
    n = facts["members"]
    last = load.looks[max(load.looks)]
    nodes = [last[name] for name in load.names]
    print(
        f"{n} members, {facts['rounds']} rounds of {facts['megabytes']:g} MB, every value right; load average "
        f"{facts['load_before']:.1f} before, {facts['load_after']:.1f} after\n"
        f"  seconds a round: median {facts['round_s']:.2f}, p95 {facts['round_s_p95']:.2f}, "
        f"most {facts['round_s_most']:.2f}\n"
        f"  start-up: ready {facts['ready_s']:.1f} s, all {n * (n - 1) // 2} connections "
        f"{facts['connected_s']:.1f} s ({facts['connected_cpu_s']:.1f} CPU s), all agreed "
        f"{facts['agreed_s']:.1f} s, first merge {facts['first_merge_s']:.1f} s\n"
        f"  memory, all processes: {facts['peak_bytes'] / 1e9:.2f} GB; a node "
        f"{statistics.median(look.pss_bytes for look in nodes) / 1e6:.0f} MB\n"
        f"  nodes' CPU: {facts['nodes_cpu_s']:.0f} s in all; a node has at most "
        f"{max(look.threads for look in nodes)} threads and {max(look.files for look in nodes)} open files\n"
        f"  the longest log: {facts['log_bytes'] / 1e3:.0f} kB; warnings: {facts['warnings'] or 'none'}",
        flush=True,
    )


def print_long(facts: dict[str, Any], load: Load) -> None:
    print(
        f"{facts['members']} members, {facts['rounds']} rounds of {facts['megabytes']:g} MB, every value right, "
        f"{facts['round_s']:.3f} s a round (p95 {facts['round_s_p95']:.3f}); load average "
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
        print(f"{name}: heap {growth['heap_bytes']:+.0f} bytes a round, PSS {growth['pss_bytes']:+.0f}")
    found = leaks(facts)
    print(
        "\n".join(found) or f"flat: nothing grows by more than the history and {GROWTH_BYTES} bytes a round"
    )
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    status = 0
    for what, members, rounds, every, show in (
        ("many", 32, 20, 5, print_many),
        ("long", 4, 500, 25, print_long),
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
        load = Load(work)
        facts = load.run()
        if options.json:
            looks = {n: {name: asdict(look) for name, look in at.items()} for n, at in load.looks.items()}
            print(json.dumps({"what": what, **facts, "looks": looks}), flush=True)
        else:
            show(facts, load)
        status |= bool(what == "long" and leaks(facts))
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_all(json.loads(sys.argv[2]), Work(**json.loads(sys.argv[3])))
    else:
        main()
