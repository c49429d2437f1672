"""Names that stand for what does not travel but must be the same at every member.

A mark is an empty tensor; its name ends in the beginning of a digest. So another base model, other columns or
other classes are another schema, and nothing is merged that means two things.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from konsil.core.digest import Digest

FROZEN = "konsil.frozen:"
"""A model's frozen parts."""

COLUMNS = "konsil.columns:"
"""The names of the rows' columns, in order."""

CLASSES = "konsil.classes:"
"""The classes that a classifier tells apart, in order."""

_DIGITS = 16
"""64 bits: two members' marks are never alike by chance, and who wanted them to be could send anything."""

_DIFFER: Mapping[str, str] = {
    FROZEN: "The frozen parts of the model differ: they do not travel, so every member must load the same"
    " ones, and freeze the same ones, before it joins.",
    COLUMNS: "The columns of the rows differ, or their order: every member must give `konsil.prepare` the"
    " same names in the same order, or all of them the number of columns alone.",
    CLASSES: "The classes differ: every member must give `konsil.prepare` the same `classes`, all that any"
    " member has.",
}


def mark(kind: str, digest: Digest) -> str:
    """The name of the empty tensor that stands for something. ``kind``: FROZEN, COLUMNS or CLASSES."""
    return kind + digest[:_DIGITS]


def is_mark(name: str) -> bool:
    """Whether a tensor of this name stands for what does not travel."""
    return name.startswith(tuple(_DIFFER))


def differing_marks(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """What two sets of tensors' names say differs beside the tensors, a sentence for each kind of mark."""
    differ = {name for name in set(ours) ^ set(theirs) if is_mark(name)}
    return [sentence for kind, sentence in _DIFFER.items() if any(name.startswith(kind) for name in differ)]
