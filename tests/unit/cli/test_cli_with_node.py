from __future__ import annotations

import json
import os
import socket
import threading

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from msgspec.structs import replace

from konsil.cli.sentences import of_matrix
from konsil.core.card_check import Compared
from konsil.core.digest import group_digest, leaf, root_from
from konsil.core.model_card import CARD_KEY, encode_card
from konsil.core.parameters import Schema, annotated_header, pack
from konsil.core.rules import (
    Agree,
    Best,
    Commit,
    Commitment,
    Enter,
    Finish,
    Initialise,
    Outer,
    Participant,
    RoundRecord,
    ScoreRecord,
    Study,
    StudySettings,
    proposals_at,
    score_matrix,
    settings_digest,
)
from konsil.node.store import model_of
from konsil.wall.memory import seal_pieces
from konsil.wall.model_file import bare_header, check_model_file

STUDY = 'name = "heart"\ndescription = "AUC\\u001b[31m"\nrounds = 3\nevery_steps = 10\nmin_members = 2\n'


@pytest.fixture
def study_file(site):
    file = site.root / "heart.toml"
    file.write_text(STUDY)
    return str(file)


def test_members_shows_who_serves_the_ledger(site):
    site.found()
    with site.node():
        text = site.run("swarm", "members").stdout
        assert "lyon (serves the ledger)" in text
        assert set(site.json("swarm", "members")) == {"lyon", "nice", "lille"}


def test_node_status_shows_peers_and_problems(site):
    site.found()
    with site.node() as node:
        node.problems = ("the moon is full",)
        text = site.run("node", "status").stdout
        for line in (
            "lyon in swarm aml",
            "one operator, 'lyon'",
            "nice: connected (accepted, 1.5 ms)",
            "lille: away. It has not dialled in.",
            "heart: round 1, training",
            "Problem: the moon is full",
        ):
            assert line in text, text
        assert site.json("node", "status")["member"] == "lyon"


def test_a_vote_is_opened_shown_and_answered(site):
    site.found()
    with site.node():
        text = site.run("swarm", "propose", "remove", "lille", "--reason", "it closed").stdout
        assert "1: lyon proposes to remove 'lille': it closed [open]" in text
        assert "not voted: nice" in text
        assert "konsil swarm vote 1 yes|no" in text
        assert site.json("swarm", "proposals")[0]["number"] == 1
        twice = site.run("swarm", "vote", "1", "yes", expect=1)
        assert twice.stderr.startswith("Refused:")
        site.run("swarm", "vote", "1", "perhaps", expect=2)


def test_a_fifth_members_card_opens_a_vote_to_admit_it(site):
    site.found()
    site.init("rennes", "127.0.0.1:7990")
    with site.node() as node:
        text = site.run("swarm", "propose", "admit", site.card("rennes")).stdout
        assert "admit 'rennes'" in text
        assert proposals_at(node.ledger.state, node.ledger.state.now_s)[0].proposer == "lyon"
    assert len(list((site.root / "lyon" / "cards").glob("*.json"))) == 4


def test_swarm_settings_come_from_a_file_that_is_checked(site):
    site.found()
    file = site.root / "swarm.toml"
    with site.node():
        file.write_text("proposal_s = 3600\n")
        assert "keep votes open for 60.0 min" in site.run("swarm", "propose", "settings", str(file)).stdout
        file.write_text("proposals = 3600\n")
        assert (
            "Did you mean 'proposal_s'?"
            in site.run("swarm", "propose", "settings", str(file), expect=1).stderr
        )


def test_a_study_is_proposed_shown_agreed_to_and_listed(site, study_file):
    site.found()
    with site.node() as node:
        assert "konsil study agree heart" in site.run("study", "propose", study_file).stdout
        assert site.json("study", "list")["heart"]["phase"] == "proposed"
        assert "heart: proposed, 0 of 3 rounds, lyon" in site.run("study", "list").stdout
        text = site.run("study", "status", "heart").stdout
        assert "agreed: lyon" in text
        assert "nice: round 1, training, 40%, heard 3 s ago" in text
        no = site.run("study", "agree", "heart", input="n\n", expect=1)
        assert "the models are merged every 10 steps" in no.stdout
        assert "\x1b[31m" not in no.stdout  # what others wrote must not steer this terminal
        assert "You did not agree" in no.stderr
        assert node.ledger.state.height == 1
        unknown = site.run("study", "status", "lung", expect=1)
        assert "Studies: heart." in unknown.stderr


def test_a_running_studys_settings_are_changed_by_vote(site, study_file):
    site.found()
    with site.node():
        site.run("study", "propose", study_file)
        with (site.root / "heart.toml").open("a") as file:
            file.write("silence_s = 90\n")
        text = site.run("study", "change", study_file).stdout
        assert "lyon proposes to change the settings of study 'heart'" in text


def test_a_study_file_with_contradictions_is_refused_by_the_contract(site):
    site.found()
    file = site.root / "bad.toml"
    file.write_text('name = "heart"\nevery_steps = 10\nevery_minutes = 5\n')
    with site.node() as node:
        result = site.run("study", "propose", str(file), expect=1)
        assert "Error" in result.stderr or "Refused" in result.stderr
        assert node.ledger.state.height == 0


@pytest.mark.parametrize("model", [False, True])
def test_a_study_with_a_merge_rule_that_nobody_knows_never_reaches_the_ledger(site, model):
    site.found()
    file = site.root / "typo.toml"
    file.write_text('name = "heart"\nevery_steps = 10\nrule = "meen"\n')
    with site.node() as node:
        more = ("--model", str(file)) if model else ()
        result = site.run("study", "propose", str(file), *more, expect=1)
        assert "no merge rule 'meen' in Konsil; there are" in result.stderr
        assert "median" in result.stderr
        assert node.ledger.state.height == 0


def test_an_empty_history_says_so(site):
    site.found()
    with site.node():
        pass
    assert site.run("ledger", "show").stdout == "Nothing is on the ledger yet.\n"


def test_without_anybody_to_answer_agree_asks_for_yes(site, study_file):
    site.found()
    with site.node() as node:
        site.run("study", "propose", study_file)
        result = site.run("study", "agree", "heart", expect=1, input="")
        assert "--yes" in result.stderr
        assert node.ledger.state.height == 1


def test_a_model_that_is_missing_says_so(site, study_file):
    site.found()
    out = site.root / "m.safetensors"
    with site.node() as node:
        site.run("study", "propose", study_file)
        result = site.run("study", "model", "heart", "--out", str(out), expect=1)
        assert "StudyError: Study 'heart' has no model yet." in result.stderr
        node.submit(Initialise("heart", "a" * 64, "b" * 64, 5000))
        result = site.run("study", "model", "heart", "--out", str(out), expect=1)
        assert "is not at this node" in result.stderr
        result = site.run("study", "model", "heart", "--out", str(out), "--round", "3", expect=1)
        assert "Round 3 of study 'heart' is not accepted" in result.stderr
        assert (
            "is no round"
            in site.run("study", "model", "heart", "--out", "m", "--round", "x", expect=1).stderr
        )
    assert not out.exists()


@pytest.fixture
def model():
    """A model of two chunks."""
    arrays = {"w": np.linspace(0, 1, 1_200_000, dtype=np.float32), "b": np.arange(5.0)}
    schema = Schema.of(arrays)
    data = bytearray(schema.data_bytes)
    pack(schema, arrays, memoryview(data))
    with seal_pieces([schema.header, bytes(data)]) as memory:
        yield model_of(memory, schema)


def _with_model(site, node, study_file, model):
    site.run("study", "propose", study_file)
    node.submit(Initialise("heart", model.schema.digest, model.digest, model.schema.data_bytes))
    node.held = model
    out = site.root / "m.safetensors"
    return out, site.run("study", "model", "heart", "--out", str(out)).stdout


def test_a_model_is_written_whole_with_its_card_and_a_page(site, study_file, model):
    site.found()
    with site.node() as node:
        out, said = _with_model(site, node, study_file, model)
        assert f"after round 0, digest {model.digest}" in said
        # Two who write the model at once share the descriptor's place of reading: it must not be used.
        assert os.lseek(model.memory.fd, 0, os.SEEK_CUR) == 0
        nowhere = site.root / "none" / "m.safetensors"
        assert (
            "cannot be written" in site.run("study", "model", "heart", "--out", str(nowhere), expect=1).stderr
        )
    assert sorted(path.name for path in site.root.iterdir() if path.is_file()) == [
        "heart.toml",
        "m.card.md",
        "m.safetensors",
    ]
    page = (site.root / "m.card.md").read_text()
    assert model.digest in page
    assert "\x1b" not in page  # what others wrote must not steer a terminal
    loaded = safetensors.numpy.load_file(out)
    assert np.array_equal(loaded["w"], np.linspace(0, 1, 1_200_000, dtype=np.float32))
    assert out.read_bytes().endswith(bytes(model.data()))
    with safetensors.safe_open(out, "np") as file:
        assert json.loads(file.metadata()["konsil_card"])["study"] == "heart"


def test_a_model_file_is_checked_against_its_card_and_the_ledger(site, study_file, model):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
        assert "The ledger of this member has the same digest" in site.run("study", "check", str(out)).stdout
        assert site.json("study", "check", str(out))["ledger"] is True
    assert site.json("study", "check", str(out)) | {"card": None} == {
        "card": None,
        "digest": model.digest,
        "file": str(out),
        "final": False,
        "ledger": None,
        "round": 0,
        "study": "heart",
    }
    said = site.run("study", "check", str(out)).stdout
    assert "compared with its own card only" in said
    assert "A card alone proves nothing" in said


def test_arrays_whose_card_claims_an_outer_optimiser_that_the_study_has_not_are_found(
    site, study_file, model
):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
        true = check_model_file(out).card
        arrays = {"w": np.full(10, 666, np.float32)}
        schema, data = Schema.of(arrays), arrays["w"].tobytes()
        settings = replace(true.settings, outer=Outer())
        forged = replace(
            true,
            settings=settings,
            settings_digest=settings_digest(settings),
            digest=root_from(schema.digest, [group_digest([leaf(data)])]),
            schema=schema.digest,
            data_bytes=schema.data_bytes,
            groups=(1,),
        )
        header = annotated_header(schema, {CARD_KEY: encode_card(forged).decode()})
        out.write_bytes(header + data)
        result = site.run("study", "check", str(out), expect=1)
    assert "another `outer` in its settings" in result.stderr
    assert site.json("study", "check", str(out))["ledger"] is None


def test_with_an_outer_optimiser_the_check_says_that_only_the_merge_is_on_the_ledger(
    monkeypatch, site, study_file, model
):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
        monkeypatch.setattr(
            "konsil.cli.models.compare_card", lambda *_: Compared(model=False, settings=False)
        )
        said = site.run("study", "check", str(out)).stdout
        assert site.json("study", "check", str(out))["ledger"] == "merge only"
    assert "ledger: merge only" in said
    assert "only those that never change were compared" in said


@pytest.mark.parametrize("at", [-1, -3_000_000])
def test_a_changed_byte_of_a_model_is_found(site, study_file, model, at):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
    data = bytearray(out.read_bytes())
    data[at] ^= 1
    out.write_bytes(data)
    result = site.run("study", "check", str(out), expect=1)
    assert result.stderr.startswith("DigestMismatch")
    assert "is not the model of round 0 of study 'heart' that its card names" in result.stderr


def test_a_model_of_another_history_is_found(site, study_file, model):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
    for path in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (site.root / "lyon" / path).unlink(missing_ok=True)
    with site.node():
        result = site.run("study", "check", str(out), expect=1)
    assert "a study that is not on this ledger" in result.stderr


def test_a_model_that_another_program_saved_again_is_still_the_model(site, study_file, model):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
    with safetensors.safe_open(out, "np") as file:
        card = file.metadata()
    arrays = safetensors.numpy.load_file(out)
    raw = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    # By hand and in another order: the library sorts as Konsil does.
    entries, at, data = {"__metadata__": card}, 0, b""
    for name in sorted(raw, reverse=True):
        dtype, shape, values = raw[name]
        code = {"float32": "F32", "float64": "F64"}[dtype.name]
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + len(values)]}
        at, data = at + len(values), data + values
    header = json.dumps(entries).encode()
    out.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert model.digest in site.run("study", "check", str(out)).stdout


def test_a_file_without_a_card_is_no_model_file(site):
    site.found()
    path = site.root / "plain.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    assert "has no model card" in site.run("study", "check", str(path), expect=1).stderr
    path.write_bytes(b"")
    assert "cannot be read" in site.run("study", "check", str(path), expect=1).stderr


def test_a_model_with_its_card_can_begin_another_study(site, study_file, model):
    site.found()
    with site.node() as node:
        out, _ = _with_model(site, node, study_file, model)
        with out.open("rb") as stream:
            assert bare_header(stream) == model.schema.header
            assert stream.read() == bytes(model.data())
        assert "has the schema of study 'heart'" in site.run("doctor", "--model", str(out), expect=1).stdout


def test_scores_are_shown_as_a_table_of_rounds_and_hospitals(site, study_file):
    site.found()
    with site.node() as node:
        site.run("study", "propose", study_file)
        assert "has a score yet" in site.run("study", "scores", "heart").stdout
        assert (
            "No merge of 'heart' has a score 'auc'."
            in site.run("study", "scores", "heart", "--metric", "auc", expect=1).stderr
        )
        assert node.ledger.state.studies["heart"].best == 0
    study = Study(
        StudySettings("heart", every_steps=1, best=Best("auc", "max")),
        "",
        "lyon",
        0,
        participants={name: Participant() for name in ("lyon", "nice", "lille")},
        history=tuple(
            RoundRecord(
                number,
                1,
                "",
                str(number) * 64,
                {"lyon": Commitment("", 1, 0), "nice": Commitment("", 1, 0)},
                {"lyon": 1, "nice": 1},
                (),
                {"lille": "silent"},
                0,
                0,
                0,
                scores={"lyon": ScoreRecord(10, 0.5, {"auc": 0.75}), "lille": ScoreRecord(1, 0.25)},
            )
            for number in (1, 2)
        ),
        best=2,
    )
    assert list(of_matrix(score_matrix(study, "auc"), study.best)) == [
        "auc of each merge, measured by each hospital on its own validation data:",
        "     round  lille   lyon   nice   mean",
        "         1      -   0.75*     -*  0.75",
        "  2 (best)      -   0.75*     -*  0.75",
        "  *: took part in that round; mean: over those who took part, weighted as in the merge",
    ]


def test_the_history_is_shown_in_sentences_and_verified_offline(site, study_file):
    site.found()
    with site.node():
        site.run("study", "propose", study_file)
        site.run("swarm", "propose", "remove", "lille")
        assert len(site.run("ledger", "show", "--json").stdout.splitlines()) == 2
    text = site.run("ledger", "show").stdout
    assert "lyon proposes the study 'heart'" in text
    assert "lyon proposes to remove 'lille'" in text
    about = site.run("ledger", "show", "heart").stdout
    assert "remove" not in about
    assert "Study 'heart' is proposed" in about
    verified = site.json("ledger", "verify")
    assert verified["height"] == 2
    assert verified["calls"] == {"ProposeRemove": 1, "ProposeStudy": 1}
    assert "The history holds: 2 calls" in site.run("ledger", "verify").stdout
    assert "There is no study 'lung'" in site.run("ledger", "show", "lung", expect=1).stderr


def test_a_history_that_was_tampered_with_fails_verification(site, study_file):
    site.found()
    with site.node():
        site.run("study", "propose", study_file)
    path = site.root / "lyon" / "ledger.db"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"rounds":3', b'"rounds":9'))
    result = site.run("ledger", "verify", expect=1)
    assert result.stderr.startswith("JournalCorrupt")
    assert "entry 1" in result.stderr


def test_new_addresses_of_a_running_member_are_announced_and_its_card_kept(site):
    site.found()
    card = (site.root / "lyon" / "lyon.card.json").read_bytes()
    config = site.root / "lyon" / "node.toml"
    config.write_text(config.read_text().replace("7999", "7555"))
    with site.node() as node:
        assert "127.0.0.1:7555" in site.run("node", "card").stdout
        assert node.ledger.state.members["lyon"].record.addresses == ("127.0.0.1:7555",)
    assert (site.root / "lyon" / "lyon.card.json").read_bytes() == card


def test_doctor_with_a_node_checks_peers_clocks_and_the_ledger(site, study_file):
    site.found()
    schema = Schema.of({"w": np.zeros(3, np.float32)})
    model = site.root / "m.safetensors"
    model.write_bytes(b"".join(bytes(piece) for piece in (schema.header, np.zeros(3, np.float32).tobytes())))
    with site.node() as node:
        site.run("study", "propose", study_file)
        node.submit(Initialise("heart", schema.digest, "a" * 64, schema.data_bytes))
        result = site.run("doctor", "--model", str(model), expect=1)  # nothing listens at its port
        for line in (
            "ok    certificate",
            "ok    nice",
            "its clock is 0.2 s ahead",
            "warn  lille",
            "ok    ledger",
            f"{model} has the schema of study 'heart'",
            "fail  port",
        ):
            assert line in result.stdout, result.stdout


@pytest.fixture
def behind_a_proxy(site):
    """lyon with peers at names that only a proxy could find; sets its proxy, at which nothing listens."""
    site.init("lyon", "127.0.0.1:7999")
    site.init("nice", "0.0.0.0:7998", "--advertise", "nice.invalid:7400")
    site.init("lille", "0.0.0.0:7997", "--advertise", "lille.invalid:7400")
    site.run(
        "swarm",
        "found",
        "aml",
        *(site.card(member) for member in ("lyon", "nice", "lille")),
        "--operator",
        "lyon",
    )
    file = site.root / "lyon" / "node.toml"
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as listening:
        closed.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{closed.getsockname()[1]}"
        file.write_text(file.read_text().replace("7999", str(listening.getsockname()[1])))

        def change(key, value, before=""):
            assert f'\n{key} = "{before}"\n' in file.read_text()
            file.write_text(file.read_text().replace(f'\n{key} = "{before}"\n', f'\n{key} = "{value}"\n'))

        yield url, change


def _line(result, check):
    lines = result.stdout.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line[6:].startswith(f"{check} "))
    return f"{lines[at]} {lines[at + 1].strip()}"


def test_doctor_in_a_shell_without_the_nodes_password_says_what_was_not_tried(site, behind_a_proxy):
    url, change = behind_a_proxy
    change("proxy", f"http://konsil@{url}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KONSIL_PROXY_PASSWORD", "secret")
        with site.node():
            patch.delenv("KONSIL_PROXY_PASSWORD")
            assert _line(site.run("doctor"), "proxy") == (
                f"warn  proxy        The running node goes out by http://konsil@{url} (`proxy` in node.toml); "
                "this shell has no KONSIL_PROXY_PASSWORD, so the proxy was not tried from here. "
                "Run doctor with the service's variables, or use `proxy_password_file`."
            )
            change("proxy", "http://konsil@another:1", before=f"http://konsil@{url}")
            line = _line(site.run("doctor"), "proxy")
            assert line.startswith("warn  proxy        The running node's way out: http://konsil@127"), line
            assert "it would be: http://konsil@another:1 (`proxy` in node.toml)." in line
            change("proxy", "", before="http://konsil@another:1")
            patch.setenv("HTTPS_PROXY", "socks5://konsil:secret@proxy:1080")
            result = site.run("doctor")
            line = _line(result, "proxy")
            assert "Of this shell's environment: HTTPS_PROXY in the environment begins with" in line
            assert "secret" not in result.stdout
            # A file that is gone is the node's own trouble as well.
            patch.delenv("HTTPS_PROXY")
            change("proxy", f"http://konsil@{url}")
            change("proxy_password_file", "gone")
            result = site.run("doctor", expect=1)
            assert _line(result, "proxy").startswith("fail  proxy        The proxy's password is not used.")
            assert _line(result, "lille").endswith("See `proxy` above.")


def test_doctor_blames_no_peer_while_the_proxy_is_down(site, behind_a_proxy):
    url, change = behind_a_proxy
    change("proxy", f"http://{url}")
    with site.node():
        result = site.run("doctor", expect=1)
        assert _line(result, "proxy").startswith(
            f"fail  proxy        The proxy http://{url} cannot be reached"
        )
        assert _line(result, "lille").startswith("warn")
        assert _line(result, "lille").endswith("See `proxy` above.")
        change("no_proxy", "lille.invalid")
        result = site.run("doctor", expect=1)
        assert _line(result, "proxy").startswith("fail")
        assert _line(result, "lille").endswith("Is its node running? Does a firewall stand between?")


def _running(site, node, study_file):
    site.run("study", "propose", study_file)
    node.submit(Initialise("heart", "a" * 64, "b" * 64, 5000), Enter("heart"))
    settings = node.ledger.state.studies["heart"].settings_digest
    node.submit_as("nice", Agree("heart", settings), Enter("heart"))


def test_status_tells_the_open_round_and_whom_it_waits_for(site, study_file):
    site.found()
    with site.node() as node:
        _running(site, node, study_file)
        node.submit(Commit("heart", 1, "b" * 64, "c" * 64, 120))
        text = site.run("study", "status", "heart").stdout
        for line in ("round 1 is collecting", "committed: lyon", "waits for nice until", "next deadline:"):
            assert line in text, text
        assert site.json("study", "status", "heart")["missing"] == ["nice"]
    text = site.run("ledger", "show", "heart", "1").stdout
    assert "lyon commits its update cccccccccccc (120 examples) for round 1 of 'heart'" in text
    assert "Round 1 of 'heart' has not been accepted." in text


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_followed_study_is_shown_until_it_ends(site, study_file, more):
    site.found()
    with site.node() as node:
        _running(site, node, study_file)
        ending = threading.Timer(0.2, lambda: node.submit(Finish("heart")))
        ending.start()
        text = site.run("study", "status", "heart", "--follow", *more).stdout
        ending.join()
    assert "finished" in text
    assert ("running" in text) == bool(more)  # without a terminal, people see the end only


def test_a_study_by_a_rule_in_a_file_is_proposed_only_where_that_file_is(site):
    site.found()
    rule, file = site.root / "middle.py", site.root / "middle.toml"
    rule.write_text(
        "from konsil.core.merge import Rule, median\ndef rule(options):\n    return Rule('', {}, median)\n"
    )
    digest = site.json("rule", "digest", str(rule))["rule_digest"]
    file.write_text(STUDY + f'rule = "middle"\nrule_digest = "{digest}"\n')
    with site.node() as node:
        lacking = site.run("study", "propose", str(file), expect=1).stderr
        assert digest in lacking
        assert "this node has none" in lacking
        rule.write_text(rule.read_text() + "# another\n")
        other = site.json("rule", "add", str(rule))["rule_digest"]
        lacking = site.run("study", "propose", str(file), expect=1).stderr
        assert digest in lacking
        assert f"this node has only {other}" in lacking
        assert "konsil rule add" in lacking
        assert node.ledger.state.height == 0
        rule.write_text(rule.read_text().removesuffix("# another\n"))
        site.run("rule", "add", str(rule))
        site.run("study", "propose", str(file))
        assert f"that rule is a file, the same at every member: digest {digest}" in (
            site.run("study", "agree", "heart", input="n\n", expect=1).stdout
        )
        changed = site.root / "changed.toml"
        changed.write_text(STUDY + f'rule = "middle"\nrule_digest = "{"ab" * 32}"\n')
        assert "ab" * 32 in site.run("study", "change", str(changed), expect=1).stderr
