"""How fast the local ledger takes calls (each one fsynced), and how fast a journal replays.

Run: python benchmarks/ledger.py [--calls 2000] [--entries 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from konsil.core.rules import Announce, Genesis, MemberRecord
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.local import LocalLedger
from konsil.ledger.replica import Replica
from konsil.ledger.verify import verify as verify_history


def make_key() -> LedgerKey:
    key = Ed25519PrivateKey.generate()
    return LedgerKey(key.public_key().public_bytes_raw().hex(), key)


def make_genesis(keys: dict[str, LedgerKey]) -> Genesis:
    records = tuple(
        MemberRecord(name, f"spiffe://{name}.example/node", key.public, f"{number:064x}", f"{number:064x}")
        for number, (name, key) in enumerate(sorted(keys.items()), 1)
    )
    return Genesis("bench", "local", "a", 1_700_000_000, records)


async def timed(ledger: LocalLedger, number: int) -> float:
    started_s = time.perf_counter()
    await ledger.submit(Announce((f"host-{number}:7400",)))
    return time.perf_counter() - started_s


async def measure_submit(path: Path, calls: int) -> None:
    key = make_key()
    keys = {"a": key, "b": make_key()}
    async with await LocalLedger.open(path, make_genesis(keys), key, "a", time.time, verify) as ledger:
        for at_once in (1, 16, 64):
            started_s = time.perf_counter()
            latencies_s: list[float] = []
            for first in range(0, calls, at_once):
                latencies_s += await asyncio.gather(*(timed(ledger, first + k) for k in range(at_once)))
            total_s = time.perf_counter() - started_s
            cuts = statistics.quantiles(latencies_s, n=100)
            print(
                f"submit, {at_once:2d} at once: {len(latencies_s) / total_s:7.0f} calls/s, "
                f"p50 {cuts[49] * 1e3:6.2f} ms, p95 {cuts[94] * 1e3:6.2f} ms"
            )


async def measure_replay(path: Path, entries: int) -> None:
    key = make_key()
    keys = {"a": key, "b": make_key()}
    genesis = make_genesis(keys)
    async with await LocalLedger.open(path, genesis, key, "a", time.time, verify) as ledger:
        batch = 500
        for first in range(0, entries, batch):
            await asyncio.gather(
                *(ledger.submit(Announce((f"host-{first + k}:7400",))) for k in range(batch))
            )
    started_s = time.perf_counter()
    replica = await Replica.open(path, genesis, verify)
    open_s = time.perf_counter() - started_s
    await replica.close()
    started_s = time.perf_counter()
    verified = verify_history(genesis, path, verify)
    verify_s = time.perf_counter() - started_s
    print(f"open:   {verified.height} entries in {open_s:.2f} s, {entries / open_s:.0f} entries/s")
    print(f"verify: {verified.height} entries in {verify_s:.2f} s, {entries / verify_s:.0f} entries/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--entries", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure_submit(Path(directory) / "submit.db", arguments.calls))
        asyncio.run(measure_replay(Path(directory) / "replay.db", arguments.entries))


if __name__ == "__main__":
    main()
