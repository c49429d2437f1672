"""``konsil study``: propose studies, agree to them, watch them, get their models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from konsil.cli import sentences
from konsil.cli.common import Node, Site, printable, span, verb
from konsil.cli.models import ask_model, of_compared, on_ledger, round_number, sealed, study_named
from konsil.cli.swarm import open_vote
from konsil.core.card_check import Compared
from konsil.core.model_card import ModelCard
from konsil.core.rules import metrics_of, score_matrix
from konsil.core.rules.calls import Agree, ProposeStudySettings
from konsil.core.rules.state import State, Study
from konsil.core.wall import AskCall, AskMend, AskNode, AskPropose, Noted, StudyStatus, ToldMended, ToldNode
from konsil.errors import StudyError
from konsil.node.config import read_study_file
from konsil.wall.model_file import check_model_file, page_path, write_model_file

FILE = click.Path(path_type=Path, dir_okay=False)
_NEWS_S = 1.0  # heartbeats are not on the ledger, so a live view asks for them this often


@click.group()
def study() -> None:
    """Propose studies, agree to them, watch them, get their models."""


@verb(study, "propose", example="konsil study propose aml.toml --model initial.safetensors")
@click.argument("file", type=FILE)
@click.option("--model", type=FILE, help="The initial parameters.  [default: those of your training]")
def propose(site: Site, file: Path, model: Path | None) -> None:
    """Put a study before the members. You agree by proposing it."""
    settings = read_study_file(file)
    with site.node() as node:
        if model is None:
            height = node.ask(AskPropose(settings), Noted).height
        else:
            with sealed(model) as memory:
                height = node.ask(AskPropose(settings), Noted, fd=memory.fd).height
    site.show(
        {"study": settings.name, "height": height},
        f"Study '{settings.name}' is on the ledger at height {height}.\n"
        f"The others agree with: konsil study agree {settings.name}",
    )


@verb(study, "change", example="konsil study change aml.toml")
@click.argument("file", type=FILE)
def change(site: Site, file: Path) -> None:
    """Open a vote among a study's members to change its settings, from the next round on."""
    open_vote(site, ProposeStudySettings(read_study_file(file)))


@verb(study, "agree", example="konsil study agree aml")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def agree(site: Site, name: str, yes: bool) -> None:
    """Take part in a study, under the settings that are shown."""
    with site.node() as node:
        found = study_named(node.state(), name)
        if not site.as_json:
            for line in sentences.of_settings(found.settings):
                click.echo(printable(line))
            click.echo(f"  proposed by {found.proposer}; digest of these settings: {found.settings_digest}")
        if not yes and not _confirmed(site):
            raise StudyError(
                f"You did not agree to '{name}'.",
                safe="Nothing was sent to the ledger.",
                do="Ask its proposer what is unclear; where nobody can answer, agree with --yes.",
            )
        height = node.ask(AskCall(Agree(name, found.settings_digest)), Noted).height
    site.show({"study": name, "height": height}, f"Agreed: '{name}', at height {height} of the ledger.")


@verb(study, "status", example="konsil study status aml --follow")
@click.argument("name")
@click.option("--follow", is_flag=True, help="Stay, and show what changes, until the study ends.")
def status(site: Site, name: str, follow: bool) -> None:
    """Which round it is, who has committed, who is missing, what is waited for and until when."""
    with site.node() as node:
        state, told = node.state(), node.ask(AskNode(), ToldNode)
        if not follow:
            _show_status(site, state, told, name)
        elif site.as_json:
            _follow_json(site, node, state, told, name)
        else:
            _follow_live(node, state, told, name)


@verb(study, "mend", example="konsil study mend aml")
@click.argument("name")
def mend(site: Site, name: str) -> None:
    """Go on with a study whose journal at this member is damaged, with what the journal still says."""
    with site.node() as node:
        told = node.ask(AskMend(name), ToldMended)
    lines = [
        f"The journal of '{name}' is mended: {told.kept} of its notes could still be read.",
        f"  The damaged file is {told.aside}" if told.aside else "  No damaged file is there any more.",
        "  If training had finished here and the ledger does not say so, let it join and finish again.",
    ]
    if told.unknown:
        lines.insert(1, "  In the attempt that was open this node publishes nothing; others lead its parts.")
    site.show(
        {"study": name, "kept": told.kept, "aside": told.aside, "unknown": told.unknown}, "\n".join(lines)
    )


@verb(study, "list", example="konsil study list")
def list_(site: Site) -> None:
    """All studies of the swarm."""
    with site.node() as node:
        state = node.state()
    lines = [
        f"{name}: {found.phase}, {len(found.history)} of {found.settings.rounds} rounds, "
        f"{', '.join(sorted(found.participants))}" + (f". {found.ended}" if found.ended else "")
        for name, found in sorted(state.studies.items())
    ]
    site.show(
        {name: _facts(found) for name, found in state.studies.items()}, "\n".join(lines) or "No study yet."
    )


@verb(study, "model", example="konsil study model aml --out aml.safetensors")
@click.argument("name")
@click.option("--out", type=FILE, required=True, help="Where to write it (safetensors).")
@click.option(
    "--round", "which", default="final", help="A round's number, or `last`.  [default: the final model]"
)
@click.option("--now", is_flag=True, help="Do not wait for the last scores of a study that is over.")
def model(site: Site, name: str, out: Path, which: str, now: bool) -> None:
    """Write a study's model to a file, with its card: the final one or, while it goes on, the best so far."""
    number = round_number(which)
    with site.node() as node:
        told, memory = ask_model(node, name, number, wait=not now)
    with memory:
        card = write_model_file(out, memory, told.card)
    kind = "the final model" if card.final else "a model"
    site.show(
        {
            "study": name,
            "round": told.round,
            "digest": told.digest,
            "file": out,
            "card": page_path(out),
            "final": card.final,
            "why": card.why,
        },
        f"{out}: {kind} of '{name}', after round {told.round}, digest {told.digest}\n"
        f"  {card.why}\n  Its card: {page_path(out)}",
    )


@verb(study, "check", example="konsil study check aml.safetensors")
@click.argument("file", type=FILE)
def check(site: Site, file: Path) -> None:
    """Compare a model file's arrays with its card and, where a node runs, the card with the ledger.

    Without a node it shows only that the arrays are those of the card, which anybody can write.
    """
    found = check_model_file(file)
    card = found.card
    compared = on_ledger(site, card)
    lines = [
        f"{file}: the arrays are those of its card: study '{card.study}', round {card.round}, "
        + ("final model" if card.final else "not the final model when it was written"),
        f"  digest: {found.digest}",
        f"  {card.why}",
        *_of_ledger(card, compared),
    ]
    site.show(
        {
            "file": file,
            "digest": found.digest,
            "study": card.study,
            "round": card.round,
            "final": card.final,
            "ledger": None if compared is None else compared.model or "merge only",
            "card": card,
        },
        "\n".join(lines),
    )


@verb(study, "scores", example="konsil study scores aml --metric auc")
@click.argument("name")
@click.option("--metric", help="`loss`, or a metric's name.  [default: all that there are]")
def scores(site: Site, name: str, metric: str | None) -> None:
    """Every merge by every hospital: how well it does on each one's own validation data."""
    with site.node() as node:
        found = study_named(node.state(), name)
    known = metrics_of(found)
    if metric is not None and metric not in known:
        raise StudyError(
            f"No merge of '{name}' has a score '{metric}'.",
            safe="Nothing was changed.",
            do=f"Scores so far: {', '.join(known) or 'none'}.",
        )
    matrices = [score_matrix(found, each) for each in ([metric] if metric is not None else known)]
    lines = [line for each in matrices for line in (*sentences.of_matrix(each, found.best), "")]
    site.show(
        {"study": name, "best": found.best, "scores": {each.metric: each.rows for each in matrices}},
        "\n".join(lines).rstrip() or f"No merge of '{name}' has a score yet.",
    )


def _of_ledger(card: ModelCard, compared: Compared | None) -> Iterator[str]:
    if compared is not None:
        return of_compared(card, compared, "The ledger of this member")
    alone = (
        "  No node runs here: the file was compared with its own card only, and no ledger. A card alone"
        " proves nothing: whoever makes arrays can make a card for them."
    )
    return iter([alone])


def _confirmed(site: Site) -> bool:
    try:
        return click.confirm("Agree?", err=site.as_json)
    except click.Abort:  # nobody at the other end
        click.echo(err=True)
        return False


# --- status --------------------------------------------------------------------------------------


def _show_status(site: Site, state: State, told: ToldNode, name: str) -> None:
    found = study_named(state, name)
    here = _here(told, name)
    site.show(
        _facts(found) | {"here": here, "height": state.height},
        "\n".join(_status_lines(found, here, told.clock_s)),
    )


def _status_lines(found: Study, here: StudyStatus | None, now_s: float) -> list[str]:
    lines = list(sentences.of_study(found, now_s))
    if here is not None and (not found.ended or here.problem):
        lines.append(
            f"  this node: round {here.round}, {here.stage}" + (f". {here.problem}" if here.problem else "")
        )
        lines += [
            f"    {beat.member}: round {beat.round}, {beat.stage}, {beat.progress:.0%}, "
            f"heard {span(max(0.0, now_s - beat.seen_s))} ago"
            for beat in here.members
            if found.phase not in ("finished", "failed")  # what was heard last is no news then
        ]
    return lines


def _follow_json(site: Site, node: Node, state: State, told: ToldNode, name: str) -> None:
    """One JSON object whenever the ledger moves, until the study is over."""
    while True:
        _show_status(site, state, told, name)
        if _over(state, name):
            return
        height = state.height
        while state.height == height:
            state = node.state(height, _NEWS_S * 30)
        told = node.ask(AskNode(), ToldNode)


def _follow_live(node: Node, state: State, told: ToldNode, name: str) -> None:
    """A view that redraws itself, until the study is over or Ctrl-C."""
    from rich.live import Live  # noqa: PLC0415 - only this view needs it; the other commands start faster
    from rich.text import Text  # noqa: PLC0415 - as above

    def view() -> Text:
        return Text(
            printable("\n".join(_status_lines(study_named(state, name), _here(told, name), told.clock_s)))
        )

    with Live(view(), refresh_per_second=4) as live:
        while not _over(state, name):
            state, told = node.state(state.height, _NEWS_S), node.ask(AskNode(), ToldNode)
            live.update(view())


def _over(state: State, name: str) -> bool:
    return study_named(state, name).phase in ("finished", "failed")


def _here(told: ToldNode, name: str) -> StudyStatus | None:
    return next((found for found in told.studies if found.study == name), None)


def _facts(found: Study) -> dict[str, object]:
    """A study for programs, with what people ask first worked out."""
    return {
        "study": found,
        "phase": found.phase,
        "accepted_rounds": len(found.history),
        "missing": sentences.missing_members(found.open) if found.open else [],
    }
