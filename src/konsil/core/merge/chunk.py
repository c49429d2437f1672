"""One chunk of a merge out of one chunk of every member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer
from konsil.core.merge.blocks import check_lengths, load, store, subtract
from konsil.core.merge.rule import Mixing, Rule
from konsil.core.merge.weights import require_weights
from konsil.core.parameters import ARRAY_DTYPES, Run
from konsil.errors import ConfigError

Floats = NDArray[np.float64]

_LARGEST_BLOCK = 32768
_SMALLEST_BLOCK = 2048
_TABLE_ELEMENTS = 131072
"""All rows of a block together (1 MiB in float64) stay in a core's second-level cache. The rules are
elementwise: the size of a block changes the speed, not a bit of the result."""


def merge_chunk(
    rule: Rule,
    runs: Sequence[Run],
    chunks: Sequence[Buffer],
    weights: Sequence[int],
    out: memoryview,
    mixing: Mixing | None = None,
    base: Buffer | None = None,
) -> None:
    """Merge one chunk of every member.

    Args:
        rule: the study's rule.
        runs: the chunk's dtypes (``Schema.runs``).
        chunks: the members' chunks, in roster order, checked to be finite.
        weights: merge weights [n], from 1 to 2^29 - 1.
        out: writable bytes of the same length, none of the chunks.
        mixing: for a rule that mixes, what ``mixing`` made of the summed Gram matrix.
        base: for a rule around the base, this chunk of the model that the round started from.

    Raises:
        ConfigError: too few members for the rule, weights out of range, or a mixing or a base too much or
            missing.
        ParametersError: a chunk has another length than the runs say.
    """
    check_lengths(runs, [*chunks, out])
    require_base(rule, runs, base)
    reduced = _reduced_weights(rule, len(chunks), weights, mixing)
    matrix = mixing.matrix if mixing else None
    largest = max(len(chunks), len(reduced))
    block = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, _TABLE_ELEMENTS // largest))
    table, merged = np.empty((len(chunks), block)), np.empty(block)
    mixed = np.empty((len(reduced), block)) if matrix else table
    origin = np.empty(block)
    for dtype, start, stop in runs:
        step = block * ARRAY_DTYPES[dtype].itemsize
        for at in range(start, stop, step):
            count = 0
            for chunk, row in zip(chunks, table, strict=True):
                count = load(dtype, chunk, at, min(at + step, stop), row)
            if base is not None:
                load(dtype, base, at, min(at + step, stop), origin)
                subtract(origin[:count], table[:, :count])
            if matrix:
                _mix(matrix, table[:, :count], mixed[:, :count])
            rule.reduce(mixed[:, :count], reduced, merged[:count])
            if base is not None:
                np.add(merged[:count], origin[:count], out=merged[:count])
            store(dtype, merged[:count], out, at)


def require_base(rule: Rule, runs: Sequence[Run], base: Buffer | None) -> None:
    """See that a rule around the base has it, and no other.

    Raises:
        ConfigError: it is missing, or too much.
        ParametersError: it has another length than the runs say.
    """
    if rule.around_base != (base is not None):
        need = "needs the model that the round started from" if rule.around_base else "takes no base"
        raise ConfigError(f"The merge rule '{rule.name}' {need}.", safe=_SAFE)
    if base is not None:
        check_lengths(runs, [base], "the model that the round started from")


def _reduced_weights(rule: Rule, n: int, weights: Sequence[int], mixing: Mixing | None) -> Sequence[int]:
    """The weights of the vectors that are reduced, after everything that can be wrong was looked at."""
    if (rule.mix is None) != (mixing is None):
        need = "needs the coefficients of its mixing step" if rule.mix else "has no mixing step"
        raise ConfigError(f"The merge rule '{rule.name}' {need}.", safe=_SAFE)
    if n < rule.members:
        raise ConfigError(
            f"The merge rule '{rule.name}' needs {rule.members} members and the roster has {n}.",
            safe=_SAFE,
            do="Raise the study's `quorum`, or take a smaller f, by vote: `konsil swarm propose`.",
        )
    if len(weights) != n:
        raise ConfigError(f"There are {len(weights)} merge weights for {n} members.", safe=_SAFE)
    require_weights(weights, least=1)
    if mixing is None:
        return weights
    require_weights(mixing.weights, least=0)
    if len(mixing.weights) != (n if mixing.matrix is None else len(mixing.matrix)) or any(
        len(row) != n for row in mixing.matrix or ()
    ):
        raise ConfigError(f"The coefficients of '{rule.name}' do not fit {n} members.", safe=_SAFE)
    return mixing.weights


def _mix(matrix: Sequence[Sequence[float]], table: Floats, mixed: Floats) -> None:
    """Row j of ``mixed`` = the sum of matrix[j][i] times row i of ``table``, in roster order.

    What has the coefficient 0 is left out: a row of scales then costs one product, whatever n is.
    """
    scratch = np.empty(table.shape[1])
    for coefficients, out in zip(matrix, mixed, strict=True):
        terms = [(value, row) for value, row in zip(coefficients, table, strict=True) if value]
        if not terms:
            out.fill(0.0)
            continue
        np.multiply(terms[0][1], terms[0][0], out=out)
        for coefficient, row in terms[1:]:
            np.multiply(row, coefficient, out=scratch)
            np.add(out, scratch, out=out)


_SAFE = "Nothing was merged."
