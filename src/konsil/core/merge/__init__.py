"""How updates become a merge, chunk by chunk, bit by bit the same on every member's processor.

A rule is an optional *mixing* step (the members' Gram matrix and merge weights become coefficients), then an
elementwise *reduce* (n chunks become one). Everything is float64, elementwise, in roster order, with integer
merge weights and one cast at the end; no BLAS, no reduction whose order depends on a processor.
"""

from konsil.core.merge.built_in import rule, rule_names
from konsil.core.merge.chunk import merge_chunk
from konsil.core.merge.gram import decode_gram, encode_gram, gram_chunk, gram_digest, sum_grams
from konsil.core.merge.reduce import median, trimmed_mean, weighted_mean
from konsil.core.merge.rule import Factory, Mixing, Rule, mixing, required_members, take_options, whole_option
from konsil.core.merge.trial import try_rule
from konsil.core.merge.weights import WEIGHT_LIMIT, merge_weights
from konsil.core.merge.whole import Whole, merge_whole

__all__ = [
    "WEIGHT_LIMIT",
    "Factory",
    "Mixing",
    "Rule",
    "Whole",
    "decode_gram",
    "encode_gram",
    "gram_chunk",
    "gram_digest",
    "median",
    "merge_chunk",
    "merge_weights",
    "merge_whole",
    "mixing",
    "required_members",
    "rule",
    "rule_names",
    "sum_grams",
    "take_options",
    "trimmed_mean",
    "try_rule",
    "weighted_mean",
    "whole_option",
]
