"""The outer optimiser of a simulated study: its state is made once, not once a member."""

from __future__ import annotations

from konsil.core.digest import chunk_count, chunk_range, group_digest, leaf, root_from
from konsil.core.outer import advance, first, layout_of
from konsil.core.parameters import Schema
from konsil.core.round import Advanced
from konsil.core.rules import Outer
from konsil.simulation.update import Layout


class OuterState:
    """The state after the accepted merge, and the model in it, from which all train on.

    ``model``: data section of that model. ``now``: what stands for both; None before the first one.
    """

    def __init__(self, outer: Outer, layout: Layout) -> None:
        """Nothing is known before the first merge, which is the initial model."""
        self._outer = outer
        self._layout = layout_of(layout.schema)
        self._schema = layout.schema
        self._state, self._spare = Layout(self._layout.state).room(), Layout(self._layout.state).room()
        self.model = layout.room()
        self.now: Advanced | None = None

    def after(self, digest: str, merge: memoryview) -> Advanced:
        """The state after an accepted merge, as every node of the study computes it.

        Args:
            digest: of the merge.
            merge: its data section.
        """
        if self.now is not None and self.now.digest == digest:
            return self.now
        if self.now is None:
            first(self._outer, self._layout, merge, self._spare)
            self.model[:] = merge
            model = digest
        else:
            before = self._state
            advance(
                self._outer,
                self._layout,
                lambda start, stop: before[start:stop],
                merge,
                self._spare,
                self.model,
            )
            model = _digest(self._schema, self.model)
        self._state, self._spare = self._spare, self._state
        self.now = Advanced(digest, _digest(self._layout.state, self._state), model)
        return self.now


def _digest(schema: Schema, data: memoryview) -> str:
    """Of parameters in one group."""
    leaves = [
        leaf(data[slice(*chunk_range(index, len(data)))]) for index in range(chunk_count(schema.data_bytes))
    ]
    return root_from(schema.digest, [group_digest(leaves)])
