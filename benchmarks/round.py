"""Seconds a round, first merge and peak memory of four members with everything on.

The work is that of the other tools' measurements: a model of MB x 1e6 bytes of float32 in 10 equal tensors
of zeros; training at member i (1..4) adds i to every parameter; plain mean; 6 rounds. A true mean of four
adds 2.5 a round, so a member that missed a merge shows another value. Every member checks the first and last
element of every tensor each round and the whole model at the end; a timing counts only when all agree.

    benchmarks/round.py [MB ...]          default: 1 10 100 400
    benchmarks/round.py --outer adam      the same with an optimiser over rounds; the values are then its own
    benchmarks/round.py --engine cometbft [--program COMETBFT]      the members keep the ledger together
    benchmarks/round.py --device cuda     the model is a PyTorch module there: four processes on one device

Nodes and training scripts are processes of their own, with mutual TLS, ledger, journal and audit on.
- seconds a round: first member's call of round k+1 less that of round k; median without round 1
- first: from the launch of the nodes until the first merge is back at a member
- peak: of the summed PSS of all processes, sampled every 0.2 s
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from konsil.core.outer import advance, first, layout_of
from konsil.core.parameters import Schema, Tensor
from konsil.core.rules import Outer, StudySettings
from konsil.evaluation.loopback import Kept, LoopbackSwarm
from konsil.node.tables import LedgerTable

MEMBERS = ("a", "b", "c", "d")
TENSORS = 10
ROUNDS = 6


def expected_values(method: str) -> list[float]:
    """What every parameter holds after each round, from 0 to the last."""
    if not method:
        return [2.5 * number for number in range(ROUNDS + 1)]
    import numpy as np  # noqa: PLC0415 - the parent needs none of this

    outer = Outer(method)
    layout = layout_of(Schema((Tensor("t", "F32", (1,)),)))
    state, model = bytearray(12), bytearray(4)
    first(outer, layout, bytes(4), memoryview(state))
    values = [0.0]
    for _ in range(ROUNDS):
        merge = np.float32(
            np.mean([np.float32(values[-1]) + np.float32(i) for i in range(1, 5)], dtype=float)
        )
        after, before = bytearray(12), state
        advance(
            outer,
            layout,
            lambda start, stop, before=before: before[start:stop],
            merge.tobytes(),
            memoryview(after),
            memoryview(model),
        )
        state = after
        values.append(float(np.frombuffer(model, np.float32)[0]))
    return values


def made(elements: int, device: str) -> tuple[Any, dict[str, Any]]:
    """A model of zeros, and its tensors by name, each of which can be added to in place."""
    if not device:
        import numpy as np  # noqa: PLC0415 - the parent needs none of this

        arrays = {f"t{i}": np.zeros(elements, np.float32) for i in range(TENSORS)}
        return arrays, arrays
    import torch  # noqa: PLC0415 - as above

    module = torch.nn.ParameterDict({f"t{i}": torch.zeros(elements, device=device) for i in range(TENSORS)})
    return module, {name: parameter.detach() for name, parameter in module.items()}


def train(socket: str, number: int, megabytes: float, method: str, device: str) -> None:
    """One member's training script."""
    import konsil  # noqa: PLC0415 - the parent needs none of this

    joined, model = made(int(megabytes * 1_000_000 / 4 / TENSORS), device)
    values = expected_values(method)
    with konsil.join("bench", joined, node=socket) as swarm:
        for call in range(1, ROUNDS + 2):
            at_s = time.time()
            expected = values[call - 1]
            ends = {float(array[k]) for array in model.values() for k in (0, -1)}
            size = sum(array.nbytes for array in model.values())
            facts = {"call": call, "at_s": at_s, "right": ends == {expected}, "bytes": size}
            print(json.dumps(facts), flush=True)
            if swarm.finished:
                break
            for name in model:
                model[name] += number
            swarm.step(examples=1)
    whole = all(float(a.min()) == float(a.max()) == values[-1] for a in model.values())
    print(json.dumps({"final": whole}), flush=True)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def children(pid: int) -> list[int]:
    """The processes that a process has started: a node's engine."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Memory(threading.Thread):
    """Samples the summed PSS of some processes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pids: list[int] = []
        self.peak_bytes = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self.over.wait(0.2):
            pids = [pid for parent in list(self.pids) for pid in (parent, *children(parent))]
            self.peak_bytes = max(self.peak_bytes, sum(pss_bytes(pid) for pid in pids))


def measure(megabytes: float, options: argparse.Namespace) -> dict[str, object]:
    """One run of the work."""
    root = Path(tempfile.mkdtemp(prefix="konsil-"))
    memory = Memory()
    try:
        kept = Kept(options.engine, LedgerTable(cometbft=options.program))
        with LoopbackSwarm(root, MEMBERS, log_level="warning", kept=kept) as swarm:
            memory.start()
            began_s = time.time()
            swarm.start(wait=False)
            memory.pids += [swarm.pid(name) for name in MEMBERS]
            swarm.wait_ready(set(MEMBERS))
            swarm.propose(
                StudySettings(
                    name="bench",
                    min_members=4,
                    quorum=4,
                    rounds=ROUNDS,
                    every_steps=1,
                    weighting="equal",
                    parts=options.parts,
                    audit_fraction=options.audit,
                    outer=Outer(options.outer) if options.outer else None,
                )
            )
            trainers = [
                subprocess.Popen(
                    [sys.executable, __file__, "--train", str(swarm.directory(name) / "session.sock"),
                     str(number), str(megabytes), options.outer, options.device],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number, name in enumerate(MEMBERS, start=1)
            ]  # fmt: skip
            memory.pids += [trainer.pid for trainer in trainers]
            said = [trainer.communicate()[0].splitlines() for trainer in trainers]
            words = [[json.loads(line) for line in lines] for lines in said]
            if options.logs:
                for name in MEMBERS:
                    print(swarm.log_tail(name, 5), file=sys.stderr)
            return summarise(words, began_s, megabytes) | {"peak_gb": round(memory.peak_bytes / 1e9, 2)}
    finally:
        memory.over.set()
        shutil.rmtree(root)


def summarise(words: list[list[dict[str, float]]], began_s: float, megabytes: float) -> dict[str, object]:
    """Times, if every value at every member was right."""
    size = int(megabytes * 1_000_000 / 4 / TENSORS) * 4 * TENSORS
    calls = [[word for word in member if "call" in word] for member in words]
    right = all(word["right"] and word["bytes"] == size for member in calls for word in member)
    final = all(member and member[-1].get("final") for member in words)
    complete = all(len(member) == ROUNDS + 1 for member in calls)
    if not (right and final and complete):
        return {"megabytes": megabytes, "verified": False, "words": words}
    firsts = [min(member[k]["at_s"] for member in calls) for k in range(ROUNDS + 1)]
    rounds = [after - before for before, after in itertools.pairwise(firsts)]
    return {
        "megabytes": megabytes,
        "verified": True,
        "round_s": round(statistics.median(rounds[1:]), 3),
        "rounds_s": [round(seconds, 3) for seconds in rounds],
        "first_s": round(firsts[1] - began_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", nargs="*", type=float, default=[1, 10, 100, 400])
    parser.add_argument("--parts", choices=("shared", "leader"), default="shared")
    parser.add_argument("--audit", type=float, default=0.05, help="fraction of others' chunks recomputed")
    parser.add_argument("--outer", choices=("adam", "yogi"), default="", help="an optimiser over rounds")
    parser.add_argument("--device", default="", help="a PyTorch module there, for example cuda")
    parser.add_argument("--engine", choices=("local", "cometbft"), default="local", help="keeps the ledger")
    parser.add_argument("--program", default="cometbft", help="CometBFT, where it is not on PATH")
    parser.add_argument("--logs", action="store_true", help="print the end of the nodes' logs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for megabytes in options.megabytes:
        result = measure(megabytes, options)
        results.append(result)
        if not options.json:
            print(
                f"{megabytes:g} MB: {result.get('round_s')} s a round, first merge "
                f"{result.get('first_s')} s, peak {result.get('peak_gb')} GB, "
                f"verified {result['verified']}, rounds {result.get('rounds_s')}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "results": results}))
    if not all(result["verified"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5], sys.argv[6])
    else:
        main()
