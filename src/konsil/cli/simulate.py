"""``konsil simulate``: seeded universes in which everything goes wrong, to see that the protocol holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from konsil.cli.common import WithExample, fail
from konsil.errors import KonsilError
from konsil.simulation.batch import run_many
from konsil.simulation.laws import Outcome
from konsil.simulation.plans import WorldName, encode_plan, world_of
from konsil.simulation.universe import draw_long
from konsil.simulation.universe.plan import MOST_HOURS
from konsil.simulation.worlds import World, world

HOURS = click.FloatRange(0, MOST_HOURS, min_open=True)


@click.command(cls=WithExample)
@click.option("--seed", default=0, show_default=True, help="The universe, or the first of many.")
@click.option(
    "--universes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many, from that seed on.",
)
@click.option("--hours", type=HOURS, help="One universe of so many hours, with a fault every few minutes.")
@click.option(
    "--nodes", is_flag=True, help="In the world of real nodes, with their whole code: slower, and deeper."
)
@click.option(
    "--processes",
    type=click.IntRange(min=0),
    default=0,
    help="How many at once; as many as there are cores unless told.",
)
@click.option("--trace", is_flag=True, help="Tell the universe's story, event by event.")
@click.option(
    "--minimise", "small", is_flag=True, help="Look for the smallest universe that breaks the same law."
)
@click.option("--plan", "as_plan", is_flag=True, help="Print the universe's plan as JSON, and do not run it.")
@click.option(
    "--from",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run the plan in this file instead of a seed's, in the world that it is for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def simulate(  # noqa: PLR0913 - one argument an option
    *,
    seed: int,
    universes: int,
    hours: float | None,
    nodes: bool,
    processes: int,
    trace: bool,
    small: bool,
    as_plan: bool,
    file: Path | None,
    as_json: bool,
) -> None:
    """Run seeded universes: the real contract, rounds and merges among crashes, cuts and liars.

    A universe is a small swarm, a network, disks, a ledger and what goes wrong with them, all drawn from one
    number: the same seed tells the same story, to the byte. What must hold in all of them is looked at after
    every event that could break it. Exit status 1: a law was broken, or the plan was refused.
    """
    if nodes and hours:
        raise click.UsageError("--hours is for the world of the core: it does not go with --nodes.")
    if universes > 1 and (hours or small or as_plan or file or trace):
        raise click.UsageError(
            "--trace, --plan, --minimise, --from and --hours are for one universe, not for many."
        )
    if file is not None and hours:
        raise click.UsageError("--from has a plan already: --hours does not go with it.")
    name: WorldName = "nodes" if nodes else "core"
    if universes > 1:
        sys.exit(_many(name, seed, universes, processes, as_json=as_json))
    try:
        data = file.read_bytes() if file is not None else b""
        there = world(name if nodes or file is None else world_of(data))
        plan = draw_long(seed, hours) if hours else there.draw(seed)
        plan = plan if file is None else there.decode(data)
    except KonsilError as error:
        fail(error, as_json=as_json)
    if small:
        smaller = there.minimised(plan)
        if smaller == plan and not as_plan and not as_json:
            click.echo("Nothing can be taken away from it, or no law is broken in it.")
        plan = smaller
    if as_plan:
        click.echo(encode_plan(plan))
        return
    sys.exit(_one(there, plan, trace=trace, as_json=as_json))


simulate.example = "konsil simulate --seed 7 --trace"


def _one(there: World[Any], plan: object, *, trace: bool, as_json: bool) -> int:
    if not as_json:
        for sentence in there.sentences(plan):
            click.echo(sentence)
    outcome = there.run(plan, click.echo if trace and not as_json else None)
    click.echo(_json(_facts(outcome)) if as_json else _ending(outcome))
    return 1 if outcome.law else 0


def _facts(outcome: Outcome[Any]) -> dict[str, Any]:
    """An outcome for programs; the story is for people."""
    facts: dict[str, Any] = msgspec.to_builtins(outcome)
    facts.pop("trace", None)
    return facts


def _json(facts: object) -> str:
    return msgspec.json.encode(facts).decode()


def _ending(outcome: Outcome[Any]) -> str:
    rounds = f"{outcome.rounds} round{'s' * (outcome.rounds != 1)} accepted"
    said = f"{rounds}, {outcome.calls} calls, {outcome.seconds:.1f} s in the universe"
    if outcome.law:
        return f"Broken law '{outcome.law}': {outcome.what} ({said})"
    return f"All laws held: {said}."


def _many(name: WorldName, first: int, count: int, processes: int, *, as_json: bool) -> int:
    done = rounds = calls = 0
    cpu_s = 0.0
    broken: list[Outcome[Any]] = []
    for tally in run_many(first, count, processes, name):
        done, rounds, calls = done + tally.universes, rounds + tally.rounds, calls + tally.calls
        cpu_s += tally.cpu_s
        for outcome in tally.broken:
            if not as_json:
                click.echo(f"universe {outcome.plan.seed}: {_ending(outcome)}")
        broken += tally.broken
    if as_json:
        facts = {"universes": done, "rounds": rounds, "calls": calls, "cpu_s": round(cpu_s, 3)}
        click.echo(_json(facts | {"broken": [_facts(outcome) for outcome in broken]}))
        return 1 if broken else 0
    click.echo(
        f"{done} universes, {rounds} rounds, {calls} calls; {done / max(cpu_s, 1e-9):.0f} universes a second "
        f"and core; {len(broken)} broken."
    )
    if broken:
        nodes = " --nodes" * (name == "nodes")
        click.echo(f"See one: konsil simulate{nodes} --seed {broken[0].plan.seed} --minimise --trace")
    return 1 if broken else 0
