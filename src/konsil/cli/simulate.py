"""``konsil simulate``: seeded universes in which everything goes wrong, to see that the protocol holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import msgspec

from konsil.cli.common import WithExample, fail
from konsil.errors import KonsilError
from konsil.simulation.universe import (
    Outcome,
    Plan,
    decode_plan,
    draw_long,
    draw_plan,
    encode_plan,
    run_universe,
)
from konsil.simulation.universe.batch import run_many
from konsil.simulation.universe.minimise import minimise
from konsil.simulation.universe.sentences import sentences


@click.command(cls=WithExample)
@click.option("--seed", default=0, show_default=True, help="The universe, or the first of many.")
@click.option("--universes", default=1, show_default=True, help="How many, from that seed on.")
@click.option("--hours", default=0.0, help="One long universe of so many hours.")
@click.option("--nodes", is_flag=True, help="Run the whole code of real nodes in it: slower, and deeper.")
@click.option("--processes", default=0, help="How many at once; as many as there are cores unless told.")
@click.option("--trace", is_flag=True, help="Tell the universe's story, event by event.")
@click.option("--minimise", "small", is_flag=True, help="Look for the smallest that breaks the same law.")
@click.option("--plan", "as_plan", is_flag=True, help="Print the universe's plan as JSON, and do not run it.")
@click.option(
    "--from",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run the plan in this file instead of a seed's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def simulate(  # noqa: PLR0913 - one argument an option
    *,
    seed: int,
    universes: int,
    hours: float,
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
    number: the same seed tells the same story, to the byte. What must hold in all of them is checked after
    every event. Exit status 1 means that something did not.
    """
    if nodes:
        sys.exit(_real_nodes(seed, universes, trace=trace))
    if universes > 1:
        sys.exit(_many(seed, universes, processes, as_json=as_json))
    try:
        plan = draw_long(seed, hours) if hours > 0 else draw_plan(seed)
        plan = plan if file is None else decode_plan(file.read_text())
    except KonsilError as error:
        fail(error, as_json=as_json)
    if small:
        plan = minimise(plan)
    if as_plan:
        click.echo(encode_plan(plan))
        return
    sys.exit(_one(plan, trace=trace, as_json=as_json))


simulate.example = "konsil simulate --seed 7 --trace"


def _one(plan: Plan, *, trace: bool, as_json: bool) -> int:
    if not as_json:
        for sentence in sentences(plan):
            click.echo(sentence)
    outcome = run_universe(plan, click.echo if trace and not as_json else None)
    click.echo(msgspec.json.encode(outcome).decode() if as_json else _ending(outcome))
    return 1 if outcome.law else 0


def _ending(outcome: Outcome) -> str:
    said = f"{outcome.rounds} accepted, {outcome.calls} calls, {outcome.seconds:.1f} s of its time"
    if outcome.law:
        return f"BROKEN: {outcome.law}: {outcome.what} ({said})"
    return f"All held: {said}."


def _many(first: int, count: int, processes: int, *, as_json: bool) -> int:
    done = rounds = calls = 0
    cpu_s = 0.0
    broken: list[Outcome] = []
    for tally in run_many(first, count, processes):
        done, rounds, calls = done + tally.universes, rounds + tally.rounds, calls + tally.calls
        cpu_s += tally.cpu_s
        for outcome in tally.broken:
            if not as_json:
                click.echo(f"universe {outcome.plan.seed}: {_ending(outcome)}")
        broken += tally.broken
    if as_json:
        facts = {"universes": done, "rounds": rounds, "calls": calls, "cpu_s": round(cpu_s, 3)}
        click.echo(json.dumps(facts | {"broken": msgspec.to_builtins(broken)}))
        return 1 if broken else 0
    click.echo(
        f"{done} universes, {rounds} rounds, {calls} calls; {done / max(cpu_s, 1e-9):.0f} universes a second "
        f"and core; {len(broken)} broken."
    )
    if broken:
        click.echo(f"See one: konsil simulate --seed {broken[0].plan.seed} --minimise --trace")
    return 1 if broken else 0


def _real_nodes(first: int, count: int, *, trace: bool) -> int:
    from konsil.simulation.nodes import run_universe as run_nodes  # noqa: PLC0415 - it imports the whole node

    broken = 0
    for seed in range(first, first + count):
        outcome = run_nodes(seed)
        if trace:
            click.echo(outcome.text)
        what = f"BROKEN: {outcome.broken[0]}" if outcome.broken else "All held"
        if trace or count == 1 or outcome.broken:
            click.echo(
                f"universe {seed}: {what} ({outcome.rounds} accepted, {outcome.took_s:.1f} s of its time)"
            )
        broken += bool(outcome.broken)
    if count > 1:
        click.echo(f"{count} universes of real nodes; {broken} broken.")
    return 1 if broken else 0
