"""The models of one study at this node: completing, fetching and merging them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from konsil.core.digest import Manifest, chunk_count
from konsil.core.parameters import Schema, check_finite
from konsil.core.round import Fetch, Lead, Probe, Recompute, blamed_after_s
from konsil.core.rules import OpenRound, Study, weights_of
from konsil.errors import NodeError, SchemaMismatch, StudyError, UpdatesMissing
from konsil.node.bench import Bench
from konsil.node.gather import Roster, together
from konsil.node.pull import Puller, in_thread
from konsil.node.site import Site, require_room
from konsil.node.store import Assembly, Model, Store

GRACE_FRACTION = 0.2
GRACE_LEAST_S = 2.0
GRACE_MOST_S = 30.0
"""How long an unreachable member is waited for before it is reported: a share of the study's ``merge_s``."""

FETCHES_AT_ONCE = 4
"""Chunks of a whole model asked for at once: 16 MiB on the way."""

T = TypeVar("T")


class Merging:
    """Works on the open round of a study, as the ledger has it at each call."""

    def __init__(self, name: str, site: Site, store: Store, study: Callable[[], Study]) -> None:
        """``name``: the study's; ``study``: the study as it stands on the ledger now."""
        self.me = site.me
        self.max_model_bytes = site.max_model_bytes
        self._ledger_s = site.ledger_s
        self.puller = Puller(site.me, site.peers, name)
        self.store = store
        self.rules = site.rules
        self.schema: Schema | None = None
        self._study = study
        self._bench: Bench | None = None

    @property
    def assembly(self) -> Assembly | None:
        """Memory in which the open round's merge is being put together."""
        return self._bench.assembly if self._bench is not None else None

    def close(self) -> None:
        """Give the workbench's memory back."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    def let_go(self) -> None:
        """Forget the workbench of a round that is over, once nothing on it is of use any more."""
        study, bench = self._study(), self._bench
        if bench is None or (study.open is not None and bench.roster.round == study.open.number):
            return
        if bench.roster.round == len(study.history) and self.store.model(study.accepted) is None:
            return  # the others went on: what a slow line has brought so far is not to be fetched again
        self.close()

    # --- the open round ------------------------------------------------------------------------

    def current(self, effect: Lead | Fetch | Recompute | Probe) -> OpenRound:
        """The open round, if it is still the attempt that an effect is about.

        Raises:
            StudyError: the attempt is over; the effect is no longer wanted.
        """
        current = self._study().open
        at = (current.number, current.attempt) if current is not None else (0, 0)
        if current is None or at != (effect.round, effect.attempt) or current.phase != "merging":
            raise StudyError(f"Attempt {effect.attempt} of round {effect.round} is not being merged here.")
        return current

    async def lead(self, effect: Lead) -> tuple[str, str]:
        """Merge a part; its digest and that of the Gram matrix, "" where the rule does not mix."""
        current = self.current(effect)
        bench = await self._bench_for(current)
        return await self._in_time(bench, bench.lead(effect.part))

    async def complete(self, current: OpenRound) -> Model:
        """The merge of the open round, whole and audited.

        Raises:
            MergeMismatch: a chunk is not what its commits give.
            NodeError: the round went on meanwhile.
        """
        bench = await self._bench_for(current)
        model = await self._in_time(bench, self._audited(current, bench))
        if bench.closed:  # the others accepted the round without this member, and the memory went with it
            raise NodeError(
                f"Round {current.number} of study {bench.roster.study!r} went on during this node's audit.",
                safe="Nothing is lost.",
                do="The accepted merge is fetched whole.",
            )
        return model

    async def _audited(self, current: OpenRound, bench: Bench) -> Model:
        model = await bench.complete(current.parts, current.digest)
        settled = {
            dispute.chunk
            for dispute in current.disputes
            if dispute.attempt == current.attempt and dispute.outcome == "right"
        }
        await bench.audit(current.parts, model, settled)
        return model

    async def _in_time(self, bench: Bench, work: Awaitable[T]) -> T:
        """Do a part of the merge; where somebody lets it hang, say who before the attempt is over."""
        task = asyncio.ensure_future(work)
        before = self.puller.peers.received()
        left_s = blamed_after_s(self._study(), self._ledger_s(), bench.grace_s)
        try:
            await asyncio.wait({task}, timeout=left_s)
            hanging = () if task.done() else bench.gatherer.who_hangs(before)
            if not hanging:
                # Slow is not dead: on a slow line a new beginning would never come to an end.
                return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise UpdatesMissing(hanging, f"{', '.join(hanging)} let a part of the merge hang.")

    async def recompute(self, effect: Recompute) -> bool:
        """Whether a disputed chunk is wrong."""
        current = self.current(effect)
        bench = await self._bench_for(current)
        published = await bench.published_leaf(current.parts[effect.part], effect.part, effect.chunk)
        return await bench.is_wrong(effect.chunk, published)

    async def probe(self, effect: Probe) -> None:
        """See that a member's update can be had and is finite."""
        bench = await self._bench_for(self.current(effect))
        await bench.gatherer.check(effect.member)

    async def _bench_for(self, current: OpenRound) -> Bench:
        roster = self._roster(current)
        schema = self.schema or await self._schema_from_peers()
        if self._bench is not None and self._bench.serves(roster, current.digest):
            return self._bench
        self.close()
        grace_s = min(GRACE_MOST_S, max(GRACE_LEAST_S, roster.settings.merge_s * GRACE_FRACTION))
        self._bench = Bench(
            roster,
            schema,
            self.me,
            self.puller,
            self.store,
            grace_s=grace_s,
            find_rule=self.rules.rule,
            fetch=self.fetch,
        )
        return self._bench

    def _roster(self, current: OpenRound) -> Roster:
        study = self._study()
        weights = weights_of(study)
        return Roster(
            study=study.settings.name,
            round=current.number,
            members=current.roster,
            digests=tuple(current.commits[name].digest for name in current.roster),
            weights=tuple(weights[name] for name in current.roster),
            settings=study.settings,
            n_parts=len(current.parts),
            base=current.base,
        )

    # --- whole models --------------------------------------------------------------------------

    async def fetch(self, digest: str, expected: Schema | None = None) -> Model:
        """A model by its root digest from any peer: for a member that was away or comes late.

        Args:
            digest: what it must have.
            expected: its schema, where that is not the study's.
        """
        self.require_room(self._study().data_bytes)
        holders = self._likely_holders()
        manifest = await self.puller.manifest(digest, holders)
        schema = self._checked_schema(manifest, expected)
        assembly = Assembly(schema)
        try:
            pending = iter(range(len(manifest.leaves)))
            async with together() as group:
                for _ in range(min(FETCHES_AT_ONCE, len(manifest.leaves))):
                    group.create_task(self._fetch_chunks(digest, manifest, pending, assembly, holders))
            if digest == self._study().initial:
                await in_thread(partial(_require_finite, assembly))
            return assembly.seal(manifest.groups)
        finally:
            assembly.close()

    async def _fetch_chunks(
        self,
        digest: str,
        manifest: Manifest,
        pending: Iterator[int],
        assembly: Assembly,
        holders: Sequence[str],
    ) -> None:
        for index in pending:
            turn = index % len(holders)  # so that all who have it share the load
            order = (*holders[turn:], *holders[:turn])
            with assembly.chunk(index) as into:
                if self._bench is None or not self._bench.give(index, manifest.leaves[index], into):
                    await self.puller.chunk(digest, index, manifest.leaves[index], into, order)

    def _likely_holders(self) -> tuple[str, ...]:
        """Other participants, those first that said that they hold the accepted model."""
        study = self._study()
        accepted = study.history[-1].accepts if study.history else (study.proposer,)
        others = [name for name in sorted(study.participants) if name not in accepted]
        return tuple(name for name in (*accepted, *others) if name != self.me)

    async def study_schema(self) -> Schema:
        """The study's schema, from a peer if this node has not seen it yet.

        Raises:
            KonsilError: no peer has it.
        """
        if self.schema is not None and self.schema.digest == self._study().schema:
            return self.schema
        return await self._schema_from_peers()

    async def _schema_from_peers(self) -> Schema:
        manifest = await self.puller.manifest(self._study().accepted, self._likely_holders())
        self.schema = self._checked_schema(manifest)
        return self.schema

    def _checked_schema(self, manifest: Manifest, expected: Schema | None = None) -> Schema:
        schema = Schema.from_header(manifest.header)
        study = self._study()
        wanted = (expected.digest, expected.data_bytes) if expected else (study.schema, study.data_bytes)
        if (schema.digest, schema.data_bytes) != wanted:
            raise SchemaMismatch(
                f"The model has a header of {schema.data_bytes} bytes of parameters that is not the study's.",
                safe="Nothing was loaded.",
                do="Ask the study's proposer.",
            )
        # Else its digest would stand for bytes that nobody has checked: those of the chunks without a leaf.
        if len(manifest.leaves) != chunk_count(schema.data_bytes):
            raise SchemaMismatch(
                f"The model has {len(manifest.leaves)} chunks; its parameters have"
                f" {chunk_count(schema.data_bytes)}.",
                safe="Nothing was loaded.",
                do="Ask the study's proposer: no Konsil writes such a manifest.",
            )
        return schema

    def require_room(self, wanted: int) -> None:
        """See that the study's model is one that this node was set up for, before memory is reserved.

        Args:
            wanted: size of the model and, where there is an outer optimiser, of its state, in bytes.
        """
        require_room(wanted, self.max_model_bytes)


def _require_finite(assembly: Assembly) -> None:
    """See that a study's first model holds no NaN: a merge is checked update by update, this nowhere else."""
    with assembly.whole() as data:
        check_finite(assembly.schema, data)
