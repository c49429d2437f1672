"""The documents against the code: links, commands, settings, calls and messages that they name."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from konsil.cli import NOUNS, main
from konsil.core import messages
from konsil.core.rules import HANDLERS, StudySettings
from konsil.node.config import read_study_file
from konsil.node.tables import IdentityTable, LedgerTable, MemberTable, NodeTable

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(rf"konsil ({'|'.join(NOUNS)})\b((?: [a-z]+)*)")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def command(words: list[str]) -> click.Command | None:
    """The command that these words begin with; None if the second one is no verb of the first."""
    found: click.Command | None = main
    for word in words:
        if not isinstance(found, click.Group):
            return found
        found = found.get_command(click.Context(found), word)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page):
    for noun, words in COMMAND.findall(page.read_text()):
        assert command([noun, *words.split()]) is not None, f"konsil {noun}{words}"


def test_the_lead_is_told_every_setting_with_its_default():
    rows = [line for line in (ROOT / "docs/consortium-lead.md").read_text().splitlines() if line[:1] == "|"]
    cells = {row.split("|")[1]: row.split("|")[2] for row in rows}
    for field in msgspec.structs.fields(StudySettings):
        cell = next((cell for cell in cells if re.search(rf"[`\[]{field.name}[`\]]", cell)), None)
        assert cell is not None, field.name
        if isinstance(field.default, int | float) and field.default and field.name != "every_minutes":
            assert f"{field.default:g}" in cells[cell].replace(",", ""), field.name


def test_hospital_it_is_told_every_key_of_node_toml():
    page = (ROOT / "docs/hospital-it.md").read_text()
    for table in (MemberTable, IdentityTable, LedgerTable, NodeTable):
        for field in msgspec.structs.fields(table):
            assert re.search(rf"^{field.name} = ", page, re.MULTILINE), field.name


def test_every_directory_that_hospital_it_is_told_to_make_can_be_made():
    page = (ROOT / "docs/hospital-it.md").read_text()
    lines = re.findall(r"^(?:\$ )?konsil (node init .*--name .*)$", page, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        with tempfile.TemporaryDirectory() as made:
            words = line.replace("/srv/konsil", f"{made}/m").split()
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, result.output


def test_the_protocol_names_every_call_and_every_message():
    page = (ROOT / "docs/protocol.md").read_text()
    tags = {call.__struct_config__.tag for call in HANDLERS}
    tags |= {kind.__struct_config__.tag for kind in messages.Request.__args__}
    assert len(tags) == len(HANDLERS) + len(messages.Request.__args__)
    assert not [tag for tag in tags if f"`{tag}`" not in page]


def test_the_protocol_names_no_message_that_is_gone():
    page = (ROOT / "docs/protocol.md").read_text()
    table = page[page.index("| request | answer |") :].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert named == {kind.__struct_config__.tag for kind in messages.Request.__args__}


@pytest.mark.parametrize(("study", "script"), [("study", "scikit_learn"), ("tabular", "tabular")])
def test_an_example_joins_the_study_of_its_file(study, script):
    settings = read_study_file(ROOT / f"examples/{study}.toml")
    assert f'konsil.join("{settings.name}"' in (ROOT / f"examples/{script}.py").read_text()


def test_every_decision_is_listed():
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    decisions = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    assert len(decisions) > 20
    assert not [path.name for path in decisions if f"({path.name})" not in listed]
