"""No pickle from a peer or a file, and no fall-back to plaintext or an older TLS, on either end of a line."""

from __future__ import annotations

import ast
import base64
import os
import pickle
import socket
import ssl
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import konsil
from konsil.core.parameters import Schema
from konsil.core.wall import WALL_VERSION, Failed, Join, Joined, Knock, Terms, Update
from konsil.errors import ParametersError
from konsil.identity.authority import Authority
from konsil.identity.tls import ALPN
from konsil.node.config import read_config
from konsil.wall.frames import raised
from konsil.wall.line import Line
from konsil.wall.memory import seal_pieces

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

THREE = ("berlin", "bonn", "koeln")
SOURCES = Path(konsil.__file__).parent

UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
OF_PICKLES = {("np", "load"), ("numpy", "load"), ("torch", "load"), ("pd", "read_pickle"), ("yaml", "load")}
SAFE_BY = {"allow_pickle": False, "weights_only": True}


def offences(source: str) -> list[str]:
    """What in a module could unpickle, or speak TLS with anybody or of another version than 1.3."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=module) if (module or "").split(".")[0] in UNPICKLERS:
                found.append(str(module))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=whose), attr=what)) if (
                whose,
                what,
            ) in OF_PICKLES:
                words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                if not any(word in words and words[word] is safe for word, safe in SAFE_BY.items()):
                    found.append(f"{whose}.{what}")
            case ast.Attribute(attr="CERT_NONE" | "CERT_OPTIONAL" | "_create_unverified_context" as what):
                found.append(what)
            case ast.Attribute(attr=what) if what.startswith(("PROTOCOL_TLSv1", "PROTOCOL_SSL", "TLSv1")):
                found += [what] if what != "TLSv1_3" else []
            case ast.Call(func=ast.Attribute(attr="insecure_channel")):
                found.append("insecure_channel")
    return found


def test_no_source_can_unpickle_or_speak_anything_but_tls_1_3():
    planted = "import pickle\nimport torch\ntorch.load(x)\nc.verify_mode = ssl.CERT_NONE\nm = ssl.TLSVersion.TLSv1_2"
    assert offences(planted) == ["pickle", "torch.load", "CERT_NONE", "TLSv1_2"]
    found = {
        str(path.relative_to(SOURCES)): offences(path.read_text(encoding="utf-8"))
        for path in SOURCES.rglob("*.py")
    }
    assert len(found) > 100
    # The Workload API is asked on a Unix socket of this machine, as SPIFFE says; no peer is behind it.
    assert found.pop("identity/source.py") == ["insecure_channel"]
    assert not {path: what for path, what in found.items() if what}


# --- what a node answers to those who dial it ----------------------------------------------------

HELLO = b"\x4b\x01\x00\x00" + (0).to_bytes(4) + (4).to_bytes(4) + (0).to_bytes(8) + b"plain"[:4]
TLS_ALERT, TLS_HANDSHAKE = 0x15, 0x16


def answer_to(address: tuple[str, int], said: bytes) -> bytes:
    """All that a node answers to bytes that are no TLS."""
    got = b""
    with socket.create_connection(address, 10) as line:
        line.sendall(said)
        try:
            while more := line.recv(4096):
                got += more
        except ConnectionError:
            pass
    return got


class Listener:
    """A port at which somebody answers a dialling node as he likes, and what the node sent there."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.sent: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            with line:
                line.settimeout(2)
                try:
                    self.sent.append(self.answer(line))
                except OSError as error:
                    self.sent.append(repr(error).encode())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def in_plaintext(line: socket.socket) -> bytes:
    line.sendall(HELLO)
    got = b""
    try:
        while more := line.recv(4096):
            got += more
    except TimeoutError:
        pass
    return got


def with_its_own_certificate_by_tls_1_2(directory: Path, root: Path):
    """The member's true identity, in the hands of a program that knows no better than TLS 1.2."""
    svid = Authority.load(read_config(directory).keys_dir).issue()
    chain, key = root / "chain.pem", root / "key.pem"
    chain.write_text("".join(ssl.DER_cert_to_PEM_cert(each) for each in svid.chain_der))
    body = base64.encodebytes(svid.key_der).decode()
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    context.set_alpn_protocols([ALPN])

    def answer(line: socket.socket) -> bytes:
        with context.wrap_socket(line, server_side=True) as secured:
            return b"spoke " + str(secured.version()).encode()

    return answer


def problem_of(lab, name: str, peer: str, words: str) -> None:
    until_s = time.monotonic() + 20
    while True:
        problems = [each for each in lab.swarm.control(name).node().problems if each.startswith(f"{peer}: ")]
        if any(words in problem for problem in problems):
            return
        assert time.monotonic() < until_s, problems
        time.sleep(0.1)


def test_a_node_speaks_tls_1_3_or_not_at_all_whoever_dials_and_the_study_goes_on_with_the_true_peer(lab):
    lab.make(*THREE, start=False)
    lab.swarm.start(["berlin", "bonn"])
    host, port = read_config(lab.swarm.directory("berlin")).node.listen.split(":")

    for said in (HELLO, b"GET / HTTP/1.1\r\nHost: berlin\r\n\r\n"):
        answer = answer_to((host, int(port)), said)
        assert answer[:1] in {b"", bytes([TLS_ALERT])}, answer
        assert len(answer) <= 7, "an alert is 7 bytes"
    older = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    older.check_hostname, older.verify_mode = False, ssl.CERT_NONE
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        older.wrap_socket(plain)
    assert "the other side does not speak TLS" in lab.log("berlin")
    assert "the other side speaks HTTP, not TLS" in lab.log("berlin")

    true = read_config(lab.swarm.directory("koeln")).node.listen.split(":")
    for answer, words in (
        (in_plaintext, "the other side does not speak TLS"),
        (
            with_its_own_certificate_by_tls_1_2(lab.swarm.directory("koeln"), lab.site.root),
            "no TLS version in common",
        ),
    ):
        false = Listener(answer)
        lab.network.do("aim", targets={"koeln": false.address})
        problem_of(lab, "berlin", "koeln", words)
        false.close()
        assert false.sent
        for sent in false.sent:
            assert not sent.startswith(b"spoke")
            assert answer is not in_plaintext or sent[0] == TLS_HANDSHAKE
            assert b"\x4b\x01\x00\x00" not in sent, "a frame in clear"
    lab.network.do("aim", targets={"koeln": (true[0], int(true[1]))})
    lab.swarm.start(["koeln"])
    lab.study(rounds=2)
    lab.train()
    lab.ends()
    assert all(set(record.roster) == set(THREE) for record in lab.intact())


# --- pickles -------------------------------------------------------------------------------------


class Evil:
    """Unpickled anywhere, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_is_no_update_whether_a_script_a_peer_or_a_file_brings_it(lab):
    lab.make(*THREE, start=False)
    mark, evil = lab.site.root / "unpickled", lab.site.root / "evil.pkl"
    evil.write_bytes(pickle.dumps(Evil(mark)))
    pickle.loads(evil.read_bytes())  # noqa: S301 - to see that it would leave its mark
    assert mark.exists()
    mark.unlink()
    lab.swarm.start(["berlin", "bonn"])
    lab.start_changed("koeln", "pickle", str(evil))
    settings = lab.site.root / "other.toml"
    settings.write_text('name = "other"\nmin_members = 2\nevery_steps = 1\n')
    for words, said in (
        (("study", "propose", str(settings), "--model", str(evil)), "The model file cannot be used."),
        (("study", "check", str(evil)), "The bytes come from another program than Konsil"),
        (("doctor", "--model", str(evil)), "The bytes come from another program than Konsil"),
    ):
        ended = lab.typed("berlin", *words)
        assert ended.returncode == 1, ended
        assert said in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr

    lab.study(rounds=2, merge_s=4, silence_s=4, quorum=2)
    lab.train()
    lab.ends("berlin", "bonn")
    lab.trainers["koeln"].kill()
    history = lab.intact("berlin", "bonn")
    assert all(set(record.roster) == {"berlin", "bonn"} for record in history)
    assert history[0].absent == {"koeln": "unreachable"}
    by_hand(lab, "bonn", evil.read_bytes())
    assert not mark.exists()


def by_hand(lab, name: str, evil: bytes) -> None:
    """Training processes that bring a pickle as their parameters' header, and as an update."""
    schema = Schema.of({"weights": np.zeros(1000, np.float32), "bias": np.zeros(3)})
    for header, update in ((evil, b""), (schema.header, evil)):
        with Line.connect(lab.swarm.directory(name) / "session.sock", 10) as line:
            line.send(Knock(WALL_VERSION, "aml", 1))
            ask(line, Terms)
            line.send(Join(header=header))
            if update:
                ask(line, Joined)
                with seal_pieces([update]) as memory:
                    line.send(Update(2, "", 1), memory.fd)
            with pytest.raises(ParametersError, match=r"header|hold \d+ bytes") as refused:
                ask(line, Joined)
            assert refused.value.do


def ask(line: Line, kind: type) -> None:
    delivery = line.receive(10)
    if delivery.fd is not None:
        os.close(delivery.fd)
    word = delivery.word
    if isinstance(word, Failed):
        raise raised(word)
    assert isinstance(word, kind), word
