from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from konsil.cli import main
from konsil.node.config import read_config


def _commands(group=main, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield from _commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]


COMMANDS = sorted(path for path in _commands() if path != ("demo",))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert f"Example:\n  konsil {' '.join(path)}" in result.output
    assert "--json" in result.output


def test_help_imports_almost_nothing():
    code = (
        "import sys, konsil.cli\n"
        "konsil.cli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "doctor" in done.stdout
    imported = set(done.stderr.replace("'", "").strip("[]\n").split(", "))
    assert not imported & {
        "asyncio",
        "cryptography",
        "grpc",
        "msgspec",
        "numpy",
        "rich",
        "sqlite3",
        "structlog",
    }


def test_an_unknown_noun_is_a_usage_error(site):
    site.run("hospital", expect=2)
    site.run("node", "begin", expect=2)


def test_init_makes_a_private_directory_and_a_public_card(site):
    result = site.init("lyon", "0.0.0.0:7400", "--advertise", "konsil.lyon.example:7400")
    directory = site.root / "lyon"
    assert str(directory / "lyon.card.json") in result.stdout
    config = read_config(directory)
    assert config.addresses == ("konsil.lyon.example:7400",)
    assert config.trust_domain == "lyon.konsil"
    for path in (directory, config.keys_dir, *config.keys_dir.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_init_never_replaces_a_member(site):
    site.init("lyon")
    before = (site.root / "lyon" / "keys" / "ledger.pem").read_bytes()
    result = site.run("node", "init", "--name", "lyon", "--listen", "none", expect=1)
    assert "There is a member" in result.stderr
    assert (site.root / "lyon" / "keys" / "ledger.pem").read_bytes() == before


def test_init_takes_up_keys_of_an_interrupted_run(site):
    site.init("lyon")
    directory = site.root / "lyon"
    before = (directory / "keys" / "ledger.pem").read_bytes()
    (directory / "node.toml").unlink()
    site.init("lyon")
    assert (directory / "keys" / "ledger.pem").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "Lyon"], "'--name' is 'Lyon'"),
        (["--name", "lyon", "--listen", "nowhere"], "'--listen' is 'nowhere'"),
        (["--name", "lyon"], "Peers cannot dial 0.0.0.0:7400"),
        (["--name", "lyon", "--listen", "none", "--trust-domain", "a b"], "'--trust-domain'"),
        (["--name", "lyon", "--listen", "none", "--proxy", "https://proxy:3128"], "'--proxy' begins with"),
        (
            ["--name", "lyon", "--listen", "none", "--proxy", "http://konsil:secret@p:3128"],
            "Write http://USER@HOST:PORT, and the password's file into `proxy_password_file` in node.toml.",
        ),
    ],
)
def test_init_refuses_what_could_not_work_before_it_makes_a_key(site, words, says):
    result = site.run("node", "init", *words, expect=1)
    assert says in result.stderr
    assert "secret" not in result.stderr
    assert str(site.root) not in result.stderr, "a file that is not there yet"
    assert not (site.root / "lyon" / "keys").exists()


def test_all_members_found_the_same_swarm_whatever_the_order_of_cards(site):
    for member, listen in (("lyon", "127.0.0.1:7999"), ("nice", "127.0.0.1:7998"), ("lille", "none")):
        site.init(member, listen)
    cards = [site.card(member) for member in ("lyon", "nice", "lille")]
    digests = {
        site.json("swarm", "found", "aml", *order, member=member)["genesis"]
        for member, order in (
            ("lyon", cards),
            ("nice", cards[::-1]),
            ("lille", [cards[1], cards[2], cards[0]]),
        )
    }
    assert len(digests) == 1
    site.run("swarm", "found", "aml", *cards)  # once more changes nothing
    again = site.run("swarm", "found", "other", *cards, expect=1)
    assert "holds another genesis" in again.stderr


def test_founding_refuses_cards_that_do_not_make_a_swarm(site):
    site.init("lyon", "127.0.0.1:7999")
    site.init("nice")
    site.init("lille")
    lyon, nice, lille = (site.card(member) for member in ("lyon", "nice", "lille"))
    for words, says in (
        ([lyon], "two members or more"),
        ([nice, lille], "not among the cards"),
        ([lyon, nice, nice], "the same name"),
        ([lyon, nice, "--operator", "nice"], "not among the members that have an address"),
        ([lyon, str(site.root / "none.json")], "cannot be read"),
        ([lyon, str(site.root / "nice" / "node.toml")], "not a member's card"),
    ):
        result = site.run("swarm", "found", "aml", *words, expect=1)
        assert says in result.stderr, result.stderr
    assert not (site.root / "lyon" / "genesis.json").exists()


def test_a_card_that_was_changed_on_the_way_is_refused(site):
    site.init("lyon", "127.0.0.1:7999")
    site.init("nice", "127.0.0.1:7998")
    card = Path(site.card("nice"))
    card.write_text(card.read_text().replace("7998", "6666"))
    result = site.run("swarm", "found", "aml", site.card("lyon"), site.card("nice"), expect=1)
    assert "IdentityError" in result.stderr
    assert "was changed" in result.stderr


def test_errors_say_what_is_safe_and_what_to_do_in_text_and_in_json(site):
    text = site.run("node", "status", expect=1)
    assert text.stdout == ""
    assert text.stderr.startswith("ConfigError: There is no file")
    assert "konsil node init" in text.stderr
    error = json.loads(site.run("node", "status", "--json", expect=1).stderr)["error"]
    assert error["kind"] == "ConfigError"
    assert {"what", "safe", "do", "code", "fields"} <= error.keys()


def test_without_a_running_node_a_command_says_how_to_start_it(site):
    site.init("lyon")
    result = site.run("swarm", "members", expect=1)
    assert result.stderr.startswith("NodeUnreachable")
    assert "konsil node start" in result.stderr


def test_the_directory_is_an_option_or_an_environment_variable(site):
    site.init("lyon")
    result = CliRunner().invoke(main, ["doctor", "--dir", str(site.root / "lyon"), "--json"])
    assert json.loads(result.stdout)["ok"]


def test_doctor_without_a_node_checks_what_is_on_disk(site):
    site.found()
    findings = {found["check"]: found for found in site.json("doctor")["findings"]}
    assert {name: found["level"] for name, found in findings.items()} == {
        "config": "ok",
        "directory": "ok",
        "keys": "ok",
        "card": "ok",
        "genesis": "ok",
        "disk": "ok",
        "journal": "ok",
        "node": "warn",
        "port": "ok",
        "proxy": "ok",
    }


def test_doctor_names_a_damaged_journal_and_the_command_that_mends_it(site):
    site.found()
    notes = site.root / "lyon" / "journal" / "aml.notes"
    notes.parent.mkdir()
    notes.write_bytes(b"0123456789abcdef {}\n")
    (found,) = [
        each
        for each in json.loads(site.run("doctor", "--json", expect=1).stdout)["findings"]
        if each["check"] == "journal"
    ]
    assert found["level"] == "fail"
    assert (
        f"The journal of study 'aml' at this node, {notes}, is damaged: line 1 does not hold."
        in found["what"]
    )
    assert "konsil study mend aml" in found["do"]


def test_doctor_does_not_take_a_journal_folder_that_it_may_not_read_for_a_whole_one(site, monkeypatch):
    site.found()

    def closed(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("konsil.node.journal.damage_in", closed)
    findings = json.loads(site.run("doctor", "--json", expect=1).stdout)["findings"]
    (found,) = [each for each in findings if each["check"] == "journal"]
    assert found["level"] == "fail"
    assert "cannot be read: Permission denied" in found["what"]


def test_doctor_warns_of_what_it_does_not_understand_of_no_proxy(site, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "192.168.*,<local>")
    site.found()
    (found,) = [each for each in site.json("doctor")["findings"] if each["check"] == "proxy"]
    assert found["level"] == "warn"
    assert (
        "NO_PROXY in the environment has '<local>', which is no name, IP address or network" in found["what"]
    )
    assert found["do"].startswith("Write such entries as names")


def test_doctor_says_in_one_line_whether_the_proxy_lets_the_node_out(site):
    """lyon serves the ledger, at a name that only a proxy could find; nothing listens where the proxy should."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        named = f"http://127.0.0.1:{closed.getsockname()[1]}"
        site.init("lyon", "0.0.0.0:7999", "--advertise", "lyon.invalid:7400")
        site.init("nice", "none", "--proxy", named)
        site.run("swarm", "found", "aml", site.card("lyon"), site.card("nice"), member="nice")
        assert read_config(site.root / "nice").node.proxy == named
        result = site.run("doctor", member="nice", expect=1)
        assert f"fail  proxy        The proxy {named} cannot be reached: Connection refused." in result.stdout
    file = site.root / "nice" / "node.toml"
    file.write_text(file.read_text().replace('no_proxy = ""', 'no_proxy = ".invalid"'))
    result = site.run("doctor", member="nice")
    assert (
        f"ok    proxy        {named} (`proxy` in node.toml); no peer is known that is dialled"
        in result.stdout
    )
    file.write_text(file.read_text().replace(named, "none").replace('no_proxy = ".invalid"', 'no_proxy = ""'))
    result = site.run("doctor", member="nice")
    assert "ok    proxy        peers are dialled directly: no proxy (`proxy` in node.toml)" in result.stdout
    file.write_text(file.read_text().replace('"none"', '""'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", "socks5://konsil:secret@proxy:1080")
        result = site.run("doctor", member="nice", expect=1)
    assert "fail  proxy        HTTPS_PROXY in the environment begins with" in result.stdout
    assert "secret" not in result.stdout


def test_doctor_fails_on_open_permissions_a_lost_key_and_a_taken_port(site):
    site.found()
    directory = site.root / "lyon"
    config = (directory / "node.toml").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (directory / "node.toml").write_text(config.replace("7999", str(port)))
        (directory / "keys" / "ledger.pem").unlink()
        directory.chmod(0o701)
        result = site.run("doctor", expect=1)
    for line in ("fail  directory", "fail  keys", "fail  port", "warn  card"):
        assert line in result.stdout, result.stdout
    assert "chmod 700" in result.stdout


def test_a_group_may_pass_to_the_training_socket_and_nobody_may_look_around(site):
    site.found()
    directory = site.root / "lyon"
    for mode, level in ((0o700, "ok"), (0o710, "ok"), (0o750, "fail"), (0o711, "fail")):
        directory.chmod(mode)
        result = site.run("doctor", expect=0 if level == "ok" else 1)
        assert f"{level:4s}  directory" in result.stdout, oct(mode)
    directory.chmod(0o700)
    (directory / "keys").chmod(0o710)
    assert "fail  directory" in site.run("doctor", expect=1).stdout


def test_doctor_fails_on_a_config_with_an_unknown_key(site):
    site.init("lyon")
    with (site.root / "lyon" / "node.toml").open("a") as file:
        file.write("lissten = 1\n")
    result = site.run("doctor", expect=1)
    assert "fail  config" in result.stdout
    assert "Did you mean 'node.listen'?" in result.stdout


# --- merge rules in files --------------------------------------------------------------------------

RULE = """
import numpy as np
from konsil.core.merge import Rule, take_options

def largest(values, weights, out):
    np.copyto(out, values[0])
    for row in values[1:]:
        np.maximum(out, row, out=out)

def rule(options):
    take_options("largest", options, {"f": 1})
    return Rule("largest", options, largest)
"""


def test_a_merge_rule_is_tried_added_and_listed(site):
    site.init("lyon")
    assert "No merge rule in a file is here" in site.run("rule", "list").stdout
    file = site.root / "largest.py"
    file.write_text(RULE)
    digest = site.run("rule", "digest", str(file)).stdout.strip()
    shown = site.run("rule", "add", str(file), "--option", "f=2").stdout
    assert f'rule_digest = "{digest}"' in shown
    (listed,) = site.json("rule", "list")
    assert listed == {"rule": "largest", "rule_digest": digest, "unchanged": True}
    (stored,) = (site.root / "lyon" / "rules").iterdir()
    stored.write_text(RULE + "#")
    assert "CHANGED since it was added" in site.run("rule", "list").stdout


def test_a_merge_rule_that_does_not_merge_is_refused_with_the_reason(site):
    site.init("lyon")
    file = site.root / "largest.py"
    file.write_text(RULE.replace("np.copyto(out, values[0])", "out[:] = values[0].mean()"))
    assert "not elementwise" in site.run("rule", "add", str(file), expect=1).stderr
    assert "no option 'g'" in site.run("rule", "add", str(file), "--option", "g=2", expect=1).stderr
    assert "not NAME=NUMBER" in site.run("rule", "add", str(file), "--option", "f", expect=1).stderr
    assert site.json("rule", "list") == []
