"""``konsil simulate``: seeded universes in which everything goes wrong, to see that the protocol holds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

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


@click.command()
@click.option("--seed", default=0, show_default=True, help="The universe, or the first of many.")
@click.option("--universes", default=1, show_default=True, help="How many, from that seed on.")
@click.option("--hours", default=0.0, help="One long universe of so many hours.")
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
def simulate(
    *,
    seed: int,
    universes: int,
    hours: float,
    processes: int,
    trace: bool,
    small: bool,
    as_plan: bool,
    file: Path | None,
) -> None:
    r"""Run seeded universes: the real contract, rounds and merges among crashes, cuts and liars.

    A universe is a small swarm, a network, disks, a ledger and what goes wrong with them, all drawn from one
    number: the same seed tells the same story, to the byte. What must hold in all of them is checked after
    every event. Exit status 1 means that something did not.

    \b
    konsil simulate --seed 7 --trace
    konsil simulate --universes 10000
    """
    if universes > 1:
        sys.exit(_many(seed, universes, processes))
    plan = draw_long(seed, hours) if hours > 0 else draw_plan(seed)
    if file is not None:
        plan = decode_plan(file.read_text())
    if small:
        plan = minimise(plan)
    if as_plan:
        click.echo(encode_plan(plan))
        return
    sys.exit(_one(plan, trace=trace))


def _one(plan: Plan, *, trace: bool) -> int:
    for sentence in sentences(plan):
        click.echo(sentence)
    outcome = run_universe(plan, click.echo if trace else None)
    click.echo(_ending(outcome))
    return 1 if outcome.law else 0


def _ending(outcome: Outcome) -> str:
    said = f"{outcome.rounds} accepted, {outcome.calls} calls, {outcome.seconds:.1f} s of its time"
    if outcome.law:
        return f"BROKEN: {outcome.law}: {outcome.what} ({said})"
    return f"All held: {said}."


def _many(first: int, count: int, processes: int) -> int:
    done = rounds = calls = 0
    cpu_s = 0.0
    broken: list[Outcome] = []
    for tally in run_many(first, count, processes):
        done, rounds, calls = done + tally.universes, rounds + tally.rounds, calls + tally.calls
        cpu_s += tally.cpu_s
        for outcome in tally.broken:
            click.echo(f"universe {outcome.plan.seed}: {_ending(outcome)}")
        broken += tally.broken
    click.echo(
        f"{done} universes, {rounds} rounds, {calls} calls; {done / max(cpu_s, 1e-9):.0f} universes a second "
        f"and core; {len(broken)} broken."
    )
    if broken:
        click.echo(f"See one: konsil simulate --seed {broken[0].plan.seed} --minimise --trace")
    return 1 if broken else 0
