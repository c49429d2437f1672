"""The same updates give the same digests in every version and on every processor."""

import ast
import os
import subprocess
import sys

import numpy as np
import pytest
from blake3 import blake3

from konsil.core import merge, outer
from konsil.core.digest import group_digest, leaf
from konsil.core.parameters import Schema, Tensor
from konsil.core.rules import Outer

EXPECTED = {
    "adam": "70592daaac244c336bec43180c7d1c5714d2f265085a5189e9c8bd341a480311",
    "yogi": "ab65c12d436c423866ce957376305bc282b48405556d25f3e9aa0b8d306d2a8e",
    "gram": "0e94596ef563615e2bb85d0a3b3417a4fd454177461e771248407677ffdb2aa4",
    "mean 1": "aed5d31a4865766ef4354b014cb05fbfa50756cceebbd4ce4fee9f5b5507fd0b",
    "mean 5": "f947d0d1d6e5f58c27e6c52ef507b0361501d6ed0f079406dd3a3c5e8a43fe57",
    "median 1": "fbc358c76dae4da2f4a245730ca9137fc76f778cbc482f78d31938decab6c273",
    "median 5": "47e75ca7188e2ac74e9262240e720d1a61b2648e1472287f9b76f649ee041a34",
    "trimmed_mean 1": "df172c2465cabf196367ddb2edb7a14a3ef3e3f91385dc4c37973a03780e5325",
    "trimmed_mean 5": "6711c4ecab61ada5bc150b2fc21aacfdaaaba927337d53b962e813e4a9028bba",
    "geometric_median 1": "2e66425eab70804c711214acb64030b9f0c452ea787f701174f6dc7a49b24444",
    "geometric_median 5": "c0e1e54a6c37d5f2cfc8c0b700b5cc0ffaec75b0405e6ce2d08993c272d89034",
    "gram around a base": "f2b969ddb50775b35c88d4533302eae5929bdfebdfd2a6ed5aa9832b3bc8ca60",
    "multi_krum 1": "5b9bc7c1a4b1702a34eab832094b719ea8f2a50616dad079e73a8659d4cbda96",
    "multi_krum 5": "5584ff09f9d0337ab71209a5dca56cf3dd8734c94af71a85e169a9ca33e74676",
    "nnm_trimmed_mean 1": "71c48ebcff17e6bd1bd04a8d7067858f0b83788e793c1bf8a204a07e10b0733b",
    "nnm_trimmed_mean 5": "bb0f1a0f1d980cf3d4419349eb283e36961f6482a5aed653b97d50d7d4b2b43d",
    "norm_clipping 1": "1b2c7adcdfb9ff93250f4d473b481aa85a4b5d3b3aa4a5ec0baf8af608fb8235",
    "norm_clipping 5": "91514e0bc5566a725c5419bed89fe9d82f2b2cdfcd9ee58ef40e9fad73b75897",
}

ELEMENTS = {"F64": 40_001, "F32": 70_001, "BF16": 501, "F16": 1_003}
SCALES = {"F64": [1.0, 1e-3, 1e20, 1.0, 0.1], "F32": [1.0, 1e-3, 1e9, 1.0, 0.1]}
WEIGHTS = [3, 1_000_003, 900_001, 800_017, 700_003]


def numbers(seed, count):
    """Numbers from -1 to 1, float64, that no version of numpy and no processor changes."""
    raw = blake3(seed.encode()).digest(length=4 * count)
    return np.frombuffer(raw, "<i4") / 2.0**31


def update(member):
    """One member's chunk, with all dtypes; some members' values are much larger than others'."""
    parts = []
    for dtype, count in ELEMENTS.items():
        values = numbers(f"{member} {dtype}", count) * SCALES.get(dtype, [1.0] * 5)[member]
        if dtype == "BF16":
            parts.append((values.astype("<f4").view("<u4") >> 16).astype("<u2"))
        else:
            parts.append(values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]))
    return parts


def digests():
    """The digest of the Gram matrix and of a merge by every rule."""
    updates = [update(member) for member in range(5)]
    runs, at = [], 0
    for dtype, part in zip(ELEMENTS, updates[0], strict=True):
        runs.append((dtype, at, at + part.nbytes))
        at += part.nbytes
    chunks = [b"".join(part.tobytes() for part in parts) for parts in updates]
    gram = merge.gram_chunk(runs, chunks)
    found = {"gram": merge.gram_digest(gram)}
    around = merge.gram_chunk(runs, chunks, chunks[4])
    found["gram around a base"] = merge.gram_digest(around)
    for name in merge.rule_names():
        for weights in ([1] * 5, WEIGHTS):
            rule, out = merge.rule(name, {}), memoryview(bytearray(at))
            base = chunks[4] if rule.around_base else None
            mixed = merge.mixing(rule, around if base else gram, weights)
            merge.merge_chunk(rule, runs, chunks, weights, out, mixed, base)
            found[f"{name} {len(set(weights))}"] = group_digest([leaf(out)])
    return found | {method: outer_digest(method, chunks) for method in ("adam", "yogi")}


def reader(state):
    return lambda start, stop: state[start:stop]


def outer_digest(method, merges):
    """The digest of an outer optimiser's state after four rounds."""
    layout = outer.layout_of(Schema(tuple(Tensor(code, code, (count,)) for code, count in ELEMENTS.items())))
    how = Outer(method, 0.05, 0.9, 0.99, 1e-3)
    state, model = bytearray(layout.state.data_bytes), bytearray(layout.model.data_bytes)
    outer.first(how, layout, merges[0], memoryview(state))
    for chunk in merges[1:]:
        after = bytearray(len(state))
        outer.advance(how, layout, reader(state), chunk, memoryview(after), memoryview(model))
        state = after
    return group_digest([leaf(state), leaf(model)])


def test_merges_stay_bit_for_bit_what_they_were():
    assert digests() == EXPECTED


def test_a_processor_without_vector_instructions_gives_the_same_bits():
    core = np._core._multiarray_umath if hasattr(np, "_core") else np.core._multiarray_umath
    features = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    if not features:
        pytest.skip("numpy knows no vector instructions of this processor")
    script = (
        f"import runpy, numpy as np; print(runpy.run_path({__file__!r})['digests']()); "
        "core = np._core._multiarray_umath if hasattr(np, '_core') else np.core._multiarray_umath; "
        f"assert not any(core.__cpu_features__[name] for name in {features})"
    )
    plain = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ast.literal_eval(plain.stdout) == digests()
