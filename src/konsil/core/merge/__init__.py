"""How updates become a merge, chunk by chunk, bit by bit the same on every member's processor.

A rule is an optional *mixing* step (the members' Gram matrix and merge weights become coefficients), then an
elementwise *reduce* (n chunks become one). Everything is float64, elementwise, in roster order, with integer
merge weights and one cast at the end; no BLAS, no reduction whose order depends on a processor.
"""

from konsil.core.merge.chunk import merge_chunk
from konsil.core.merge.gram import decode_gram, encode_gram, gram_chunk, gram_digest, sum_grams
from konsil.core.merge.rule import (
    WEIGHT_LIMIT,
    Mixing,
    Rule,
    mixing,
    register,
    required_members,
    rule,
    rule_names,
)
from konsil.core.merge.weights import merge_weights
from konsil.core.merge.whole import Whole, merge_whole

__all__ = [
    "WEIGHT_LIMIT",
    "Mixing",
    "Rule",
    "Whole",
    "decode_gram",
    "encode_gram",
    "gram_chunk",
    "gram_digest",
    "merge_chunk",
    "merge_weights",
    "merge_whole",
    "mixing",
    "register",
    "required_members",
    "rule",
    "rule_names",
    "sum_grams",
]
