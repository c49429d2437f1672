"""``konsil simulate``: seeded universes in which everything goes wrong, to see that the protocol holds."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

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

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


class _Hours(click.FloatRange):
    """As its base, which takes what is no number for one in the range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        hours = super().convert(value, param, ctx)
        if math.isnan(hours):
            self.fail(f"{hours} is not in the range {self._describe_range()}.", param, ctx)
        return hours


HOURS = _Hours(0, MOST_HOURS, min_open=True)


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
    help="How many at once; as many as there are cores unless told. One universe runs in one.",
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
    one = hours or small or as_plan or file or trace
    for contradicts, why in (
        (nodes and hours, "--hours is for the world of the core: it does not go with --nodes."),
        (
            universes > 1 and one,
            "--trace, --plan, --minimise, --from and --hours are for one universe, not for many.",
        ),
        (file and hours, "--from has a plan already: --hours does not go with it."),
        (file and _is_told("seed"), "--from has a plan already, and its seed: --seed does not go with it."),
        (trace and as_json, "--trace tells a story to people: it does not go with --json."),
    ):
        if contradicts:
            raise click.UsageError(why)
    name: WorldName = "nodes" if nodes else "core"
    try:
        if universes > 1:
            sys.exit(_many(name, seed, universes, processes, as_json=as_json))
        there, plan = _planned(
            "" if file is not None and not nodes else name, seed, hours, file, as_json=as_json
        )
        if small:
            smaller = there.minimised(plan)
            if smaller == plan and not as_plan and not as_json:
                click.echo("Nothing can be taken away from it, or no law is broken in it.")
            plan = smaller
        if as_plan:
            click.echo(encode_plan(plan))
            return
        sys.exit(_one(there, plan, trace=trace, as_json=as_json))
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        sys.exit(STOPPED)


simulate.example = "konsil simulate --seed 7 --trace"


def _is_told(option: str) -> bool:
    """Whether an option was given, be it with the value that it has anyway."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def _planned(
    name: WorldName | Literal[""], seed: int, hours: float | None, file: Path | None, *, as_json: bool
) -> tuple[World[Any], Any]:
    """The plan that is asked for and its world. ``name``: "" for the world that the file's plan is for."""
    try:
        data = file.read_bytes() if file is not None else b""
        there = world(name or world_of(data))
        plan = draw_long(seed, hours) if hours else there.draw(seed)
        return there, plan if file is None else there.decode(data)
    except KonsilError as error:
        fail(error, as_json=as_json)


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
