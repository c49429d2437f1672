"""Seconds of one step of an outer optimiser, as a node makes it after each accepted merge.

The model is MB x 1e6 bytes of float32 in sealed memory. A step reads the state and the merge and makes the
next state and model, digests included; beside it, without fresh memory and digests. Seconds of one core (who
else uses it does not count), the fastest of five. For memory: benchmarks/round.py --outer adam.

    benchmarks/outer.py [MB ...]          default: 1 10 100 400
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from konsil.core.outer import advance, layout_of
from konsil.core.parameters import Schema, Tensor
from konsil.core.rules import Outer
from konsil.node.outer import _advanced, _first
from konsil.node.store import model_of
from konsil.wall.memory import seal_pieces

REPEATS = 5


def measure(megabytes: float, method: str) -> dict[str, object]:
    """One size and method: seconds of a step."""
    elements = int(megabytes * 1_000_000 / 4)
    schema = Schema((Tensor("w", "F32", (elements,)),))
    layout, outer = layout_of(schema), Outer(method)
    rng = np.random.default_rng(1)

    def model() -> object:
        values = rng.standard_normal(elements, np.float32)
        return model_of(seal_pieces([schema.header, values.data.cast("B")]), schema)

    (before,) = _first(outer, layout, model())
    merge = model()
    bare_s, whole_s = [], []
    for _ in range(REPEATS):
        began_s = time.process_time()
        state, stepped = _advanced(outer, layout, before.reader(), merge)
        whole_s.append(time.process_time() - began_s)
        state.memory.close()
        stepped.memory.close()
    after, out = bytearray(layout.state.data_bytes), bytearray(schema.data_bytes)
    for _ in range(REPEATS):
        began_s = time.process_time()
        advance(outer, layout, before.reader(), merge.data(), memoryview(after), memoryview(out))
        bare_s.append(time.process_time() - began_s)
    return {
        "megabytes": megabytes,
        "method": method,
        "step_s": round(min(whole_s), 4),
        "bare_s": round(min(bare_s), 4),
        "state_megabytes": layout.state.data_bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", nargs="*", type=float, default=[1, 10, 100, 400])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results = [measure(size, method) for size in options.megabytes for method in ("adam", "yogi")]
    if options.json:
        print(json.dumps({"results": results}))
        return
    for result in results:
        print(
            f"{result['megabytes']:g} MB, {result['method']}: {result['step_s']} s a step, "
            f"{result['bare_s']} s bare, state {result['state_megabytes']:g} MB"
        )


if __name__ == "__main__":
    main()
