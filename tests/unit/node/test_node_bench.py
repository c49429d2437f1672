"""Merging in parts over a network in memory: the same bits as in one place, or an error that names who."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.digest import leaf, root_from
from konsil.core.merge import Rule
from konsil.core.messages import GetChunk
from konsil.core.rules import Part
from konsil.errors import ConfigError, DigestMismatch, MergeMismatch, NodeError, StudyError, UpdatesMissing

RULES = ["mean", "median", "trimmed_mean", "geometric_median", "nnm_trimmed_mean", "norm_clipping"]
MIXING = {"geometric_median", "nnm_trimmed_mean", "norm_clipping"}


@pytest.fixture(autouse=True)
def begun(swarm, make):
    """All hospitals hold the model that the round started from."""
    swarm.begin_from(make.model(0.5), *swarm.hospitals)


async def lead_all(swarm, opened, benches):
    """Every leader merges its parts; the round as it stands with all published."""
    led = [(number, part.leader) for number, part in enumerate(opened.parts)]
    made = await asyncio.gather(*(benches[leader].lead(number) for number, leader in led))
    parts = tuple(Part(leader, digest, gram) for (_, leader), (digest, gram) in zip(led, made, strict=True))
    return replace(
        opened, parts=parts, digest=root_from(benches["a"].schema.digest, [p.digest for p in parts])
    )


def benches_of(swarm, opened, **options):
    return {name: swarm.bench(name, opened, **options) for name in swarm.hospitals}


@pytest.mark.parametrize("rule", RULES)
async def test_every_member_gets_what_a_merge_in_one_place_gives_bit_for_bit(swarm, rule):
    swarm.rule = rule
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    data, parts, digest = swarm.truth(opened)
    assert tuple(part.digest for part in published.parts) == parts
    assert len({part.gram for part in published.parts}) == 1
    assert bool(published.parts[0].gram) == (rule in MIXING)
    for name, bench in benches.items():
        model = await bench.complete(published.parts, digest)
        assert bytes(model.data()) == data, name
        await bench.audit(published.parts, model, set())
        assert await bench.complete(published.parts, digest) is model


async def test_one_leader_may_merge_everything(swarm):
    opened = swarm.open(n_parts=1)
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    assert published.digest == swarm.truth(opened)[2]
    assert (
        bytes((await benches["d"].complete(published.parts, published.digest)).data())
        == swarm.truth(opened)[0]
    )


async def test_a_leader_that_serves_a_wrong_chunk_is_named_when_nobody_else_has_it(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    swarm.hospitals["b"].lies[GetChunk] = bytes(4 * 1024 * 1024)
    with pytest.raises(UpdatesMissing, match="not what its digest says") as caught:
        await benches["a"].complete(published.parts, published.digest)
    assert caught.value.members == ("b",)


async def test_a_wrong_chunk_of_a_part_is_taken_from_another_member_that_has_the_part(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    swarm.hospitals["c"].store.add_model(await benches["c"].complete(published.parts, published.digest))
    swarm.hospitals["b"].lies[GetChunk] = bytes(4 * 1024 * 1024)
    model = await benches["a"].complete(published.parts, published.digest)
    assert model.digest == published.digest


@pytest.mark.parametrize("rule", ["mean", "geometric_median", "norm_clipping"])
async def test_a_leader_that_publishes_a_wrong_merge_is_found_out_by_all_others(swarm, rule):
    swarm.rule = rule
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    merge = benches["b"]._merge

    def lying_merge(index, chunks, out):
        merge(index, chunks, out)
        out[100] ^= 1

    benches["b"]._merge = lying_merge
    published = await lead_all(swarm, opened, benches)
    for name in "acd":
        model = await benches[name].complete(published.parts, published.digest)
        with pytest.raises(MergeMismatch, match="merged by 'b', is not what its commits give") as caught:
            await benches[name].audit(published.parts, model, set())
        part, chunk = caught.value.fields["part"], caught.value.fields["chunk"]
        assert published.parts[part].leader == "b"
        wrong = await benches[name].published_leaf(published.parts[part], part, chunk)
        assert await benches[name].is_wrong(chunk, wrong)
        # A dispute that the others found groundless is not raised over and over.
        await benches[name].audit(published.parts, model, set(benches[name].chunks_of(part)))


async def test_without_audits_a_wrong_merge_passes_which_is_what_the_fraction_is_for(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened, audit_fraction=0.0)
    published = await lead_all(swarm, opened, benches)
    model = await benches["a"].complete(published.parts, published.digest)
    benches["a"]._merge = None
    await benches["a"].audit(published.parts, model, set())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
async def test_a_member_with_a_nan_in_its_update_is_named_with_the_tensor(swarm, make, rule, value):
    swarm.rule = rule
    swarm.commit("c", make.model(3, weights=(2_400_000, value)))
    opened = swarm.open()
    bench = swarm.bench("c", opened)
    with pytest.raises(
        UpdatesMissing, match=r"update of c is refused: Tensor 'weights'.*index 2400000"
    ) as caught:
        await bench.lead(2)
    assert caught.value.members == ("c",)
    with pytest.raises(UpdatesMissing):
        await swarm.bench("a", opened).gatherer.check("c")


async def test_members_whose_update_cannot_be_had_are_all_named_once_the_grace_is_over(swarm):
    opened = swarm.open()
    swarm.network.isolate("c")
    swarm.network.isolate("d")
    bench = swarm.bench("a", opened, grace_s=0.01)
    with pytest.raises(UpdatesMissing) as caught:
        await bench.lead(0)
    assert caught.value.members == ("c", "d")
    with pytest.raises(UpdatesMissing):
        await bench.gatherer.check("c")
    await bench.gatherer.check("b")


async def test_an_update_of_another_schema_is_named_and_not_merged(swarm, make):
    swarm.commit("d", make.model(4, elements=1000))
    opened = swarm.open()
    with pytest.raises(UpdatesMissing, match="update of d has another schema") as caught:
        await swarm.bench("a", opened).lead(0)
    assert caught.value.members == ("d",)


async def test_parts_that_do_not_give_the_digest_are_not_loaded(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    with pytest.raises(DigestMismatch, match="Nothing was loaded"):
        await benches["a"].complete(published.parts, "0" * 64)
    assert (await benches["a"].complete(published.parts, published.digest)).digest == published.digest


async def test_a_leader_whose_part_is_the_digest_of_something_else_is_named(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    other = swarm.updates["b"]  # a whole model with as many chunks as the one part, behind its root
    parts = (Part("b", other.digest), *published.parts[1:])
    with pytest.raises(UpdatesMissing, match="b published no part") as caught:
        await benches["a"].complete(parts, published.digest)
    assert caught.value.members == ("b",)


async def test_a_leader_answers_only_for_what_it_merged_itself(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    merge = benches["b"]._merge

    def lying_merge(index, chunks, out):
        merge(index, chunks, out)
        out[100] ^= 1

    benches["b"]._merge = lying_merge
    published = await lead_all(swarm, opened, benches)
    with pytest.raises(DigestMismatch):  # it has all chunks now, the liar's among them
        await benches["a"].complete(published.parts, "0" * 64)
    digests = [(await benches["a"].lead(number))[0] for number in (0, 1)]
    assert digests == list(swarm.truth(opened)[1][:2])


# --- Gram matrices -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(MIXING))
async def test_a_member_that_leads_nothing_makes_the_matrix_to_audit(swarm, rule):
    swarm.rule = rule
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    assert "d" not in {part.leader for part in published.parts}
    model = await benches["d"].complete(published.parts, published.digest)
    assert not await benches["d"].is_wrong(0, model.manifest.leaves[0])
    assert await benches["d"].is_wrong(0, leaf(b"another"))


# --- the model that the round started from ---------------------------------------------------------


async def test_a_member_that_lacks_the_base_gets_it_before_it_merges(swarm, make):
    swarm.rule = "norm_clipping"
    base, elsewhere = swarm.base, make.model(0.5)
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    b, asked = swarm.hospitals["b"], []
    b.store.keep_only({swarm.updates["b"].digest})

    async def fetch(digest):
        asked.append(digest)
        return elsewhere

    swarm.base = elsewhere  # b's copy was closed with its store
    with pytest.raises(StudyError, match=r"started from \(.*\) is not here.*Nothing was merged"):
        await benches["b"].lead(1)
    benches["b"]._fetch_model = fetch
    digest, gram = await benches["b"].lead(1)
    assert asked == [base.digest]
    assert digest == swarm.truth(opened)[1][1]
    assert gram


# --- rules of the members' own ---------------------------------------------------------------------


def largest(values, _weights, out):
    np.copyto(out, values[0])
    for row in values[1:]:
        np.maximum(out, row, out=out)


async def test_a_rule_of_the_members_own_merges_in_parts_as_in_one_place(swarm):
    swarm.rule, swarm.own_rule = "largest", Rule("largest", {}, largest)
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    data, _, digest = swarm.truth(opened)
    model = await benches["d"].complete(published.parts, digest)
    assert bytes(model.data()) == data
    await benches["d"].audit(published.parts, model, set())


@pytest.mark.parametrize("value", [np.nan, 1e300])
async def test_what_is_no_number_in_the_parameters_dtype_is_not_published(swarm, value):
    def reduce(values, _weights, out):
        np.copyto(out, values[0])
        out[-1] = value

    swarm.rule, swarm.own_rule = "largest", Rule("largest", {}, reduce)
    opened = swarm.open()
    bench = swarm.bench("a", opened)
    before = set(bench.store._parts)
    with pytest.raises(StudyError, match=r"did not give a number everywhere\..*Nothing was published"):
        await bench.lead(0)
    assert set(bench.store._parts) == before


async def test_a_member_without_the_rule_completes_but_does_not_audit(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)

    def lacking(_settings):
        raise ConfigError("The rule is not here.", safe="Nothing was merged.", do="Add it.")

    d = benches["d"]
    d._find_rule = lacking
    model = await d.complete(published.parts, published.digest)
    with pytest.raises(ConfigError, match="rule is not here"):
        await d.audit(published.parts, model, set())
    with pytest.raises(ConfigError, match="rule is not here"):
        await d.lead(0)


# --- memory --------------------------------------------------------------------------------------


async def test_a_bench_that_is_closed_while_chunks_arrive_breaks_nothing(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    swarm.network.delay("b", "a", 0.05)
    completing = asyncio.create_task(benches["a"].complete(published.parts, published.digest))
    await asyncio.sleep(0.02)
    benches["a"].close()
    with pytest.raises((NodeError, UpdatesMissing)):
        await completing


async def test_a_cancelled_merge_ends_as_cancelled(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    for pause_s in (0.0, 0.001, 0.003, 0.006, 0.01):
        working = asyncio.create_task(benches["d"].complete(published.parts, published.digest))
        await asyncio.sleep(pause_s)
        working.cancel()
        outcome = (await asyncio.gather(working, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError) or outcome.digest == published.digest


async def test_a_merge_that_did_not_pass_its_audit_leaves_no_memory_behind(swarm):
    opened = swarm.open()
    benches = benches_of(swarm, opened)
    published = await lead_all(swarm, opened, benches)
    kept = await benches["c"].complete(published.parts, published.digest)
    model = await benches["a"].complete(published.parts, published.digest)
    benches["a"].close()
    assert model.memory.fd == -1
    with pytest.raises(NodeError, match="given back"):
        model.chunk(0)
    swarm.hospitals["c"].store.add_model(kept)
    benches["c"].close()
    assert kept.memory.fd >= 0
