"""Every parser under the fuzzer for a moment, with the same inputs each time; what once broke one is replayed."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

FUZZ = Path(__file__).parents[2] / "fuzz"
GROUPS = ("peers", "ledgers", "engines", "identities", "files", "walls")
RUNS = {"peers": 1000, "ledgers": 500, "engines": 500, "identities": 500, "files": 600, "walls": 1500}
SEED = 1
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("group", GROUPS)
def test_no_parser_lets_anything_out_but_what_it_says(tmp_path, group):
    if importlib.util.find_spec("atheris") is None:
        problem = (
            "NOT TESTED: atheris is not here, so parsers were not fuzzed (what once broke them is replayed)"
        )
        if os.environ.get("CI") == "true" and SUPPORTED:
            pytest.fail(problem)
        assert run(group).returncode == 3, "replayed"
        pytest.skip(problem)
    ended = run(group, "--runs", str(RUNS[group]), "--seed", str(SEED), "--found", str(tmp_path))
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert not list(tmp_path.iterdir())


def test_every_group_is_fuzzed_and_every_input_that_once_broke_something_is_replayed():
    listed = run("--list").stdout.splitlines()
    targets = {line.split()[0] for line in listed if line.startswith(" ")}
    assert {line for line in listed if not line.startswith(" ")} == set(GROUPS)
    assert {folder.name for folder in (FUZZ / "corpus").iterdir()} <= targets
    assert len(targets) > 30


@pytest.mark.parametrize(
    ("broken", "limit_s", "says"),
    [
        ("raise KeyError(1)", 5, "KeyError"),
        ("must(held=False, what='one form')", 5, "one form"),
        ("bytearray(80 << 20)", 5, "made it hold"),
        ("[hash(n) for n in range(6_000_000)]", 0.1, "took"),
        ("return False", 5, "none of its seeds is let through"),
    ],
)
def test_a_parser_that_breaks_its_word_is_found(tmp_path, broken, limit_s, says):
    """The runner itself: a target is put in place of a real one, and an input is replayed."""
    (tmp_path / "input").write_bytes(b"x")
    (tmp_path / "broken.py").write_text(
        f"import sys; sys.path.insert(0, {str(FUZZ)!r})\n"
        "import table, run\n"
        "from target import Target, must\n"
        f"def broken(data):\n    if data or 'return' in {broken!r}:\n        {broken}\n    return True\n"
        f"table.TARGETS['card'] = Target('card', '', broken, lambda: [b''], limit_s={limit_s})\n"
        f"sys.argv = ['run.py', 'card', '--replay', {str(tmp_path / 'input')!r}]\n"
        "sys.exit(run.main())\n"
    )
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert says in ended.stderr
