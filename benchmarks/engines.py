"""What keeps the ledger, side by side: four members with real nodes, calls through their control sockets.

Run: python benchmarks/engines.py [ENGINE ...] [--calls 100] [--program COMETBFT]

- start: from the launch of the nodes until the first call stands on the ledger
- a call: one at a time, from one member after another; p50 and p95
- 4 x 4: four calls at once of each of four members, until the last stands
- calls/s: 16 at once of each of four members, all the time
- a member's memory: PSS of its node and of the engine's program, mean over members, at the end
- disk: what a member's directory grew by for 1,000 calls
- idle: processor time of all members while nothing happens, in percent of one core
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from konsil.core.rules import Announce
from konsil.evaluation.loopback import Kept, LoopbackSwarm
from konsil.node.tables import LedgerTable

MEMBERS = ("a", "b", "c", "d")
IDLE_S = 20.0
_numbers = itertools.count(1)


def call(swarm: LoopbackSwarm, name: str) -> float:
    """One call of a member; how long it took."""
    number = next(_numbers)
    began_s = time.perf_counter()
    swarm.control(name).call(Announce((f"host-{number}.example:7400",)))
    return time.perf_counter() - began_s


def at_once(swarm: LoopbackSwarm, pool: ThreadPoolExecutor, each: int) -> float:
    """So many calls of each member at once; until the last stands."""
    began_s = time.perf_counter()
    list(pool.map(lambda name: call(swarm, name), MEMBERS * each))
    return time.perf_counter() - began_s


def processes(swarm: LoopbackSwarm) -> list[psutil.Process]:
    nodes = [psutil.Process(swarm.pid(name)) for name in MEMBERS]
    return nodes + [child for node in nodes for child in node.children(recursive=True)]


def size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def busy_s(swarm: LoopbackSwarm) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(swarm))


def measure(engine: str, options: argparse.Namespace) -> dict[str, object]:
    root = Path(tempfile.mkdtemp(prefix="konsil-"))
    kept = Kept(engine, LedgerTable(cometbft=options.program))  # type: ignore[arg-type]  # a word
    try:
        with LoopbackSwarm(root, MEMBERS, log_level="warning", kept=kept) as swarm:
            began_s = time.perf_counter()
            swarm.start()
            call(swarm, "a")
            start_s = time.perf_counter() - began_s
            for number in range(20):
                call(swarm, MEMBERS[number % 4])
            single = [call(swarm, MEMBERS[number % 4]) for number in range(options.calls)]
            with ThreadPoolExecutor(64) as pool:
                bursts = [at_once(swarm, pool, 4) for _ in range(20)]
                before, began_s = size_bytes(swarm.directory("a")), time.perf_counter()
                many = 8
                for _ in range(many):
                    at_once(swarm, pool, 16)
                rate = many * 64 / (time.perf_counter() - began_s)
                grown = size_bytes(swarm.directory("a")) - before
            pss = sum(process.memory_full_info().pss for process in processes(swarm))
            cpu_s = busy_s(swarm)
            time.sleep(IDLE_S)
            idle = (busy_s(swarm) - cpu_s) / IDLE_S
            cuts = statistics.quantiles(single, n=20)
            burst_cuts = statistics.quantiles(bursts, n=20)
            return {
                "engine": engine,
                "start_s": round(start_s, 2),
                "call_ms": {"p50": round(cuts[9] * 1e3, 2), "p95": round(cuts[18] * 1e3, 2)},
                "four_by_four_ms": {
                    "p50": round(burst_cuts[9] * 1e3, 1),
                    "p95": round(burst_cuts[18] * 1e3, 1),
                },
                "calls_a_s": round(rate),
                "member_mb": round(pss / 4 / 1e6),
                "disk_mb_a_1000_calls": round(grown / (many * 64) * 1000 / 1e6, 2),
                "idle_percent": round(100 * idle, 1),
            }
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="*", default=["local", "cometbft"])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--program", default="cometbft")
    options = parser.parse_args()
    for engine in options.engines:
        print(json.dumps(measure(engine, options)), flush=True)


if __name__ == "__main__":
    main()
