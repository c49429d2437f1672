"""Merge rules in files: only what the members agreed to, byte for byte, is run, and only if it merges well."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from konsil.core.merge import Rule
from konsil.core.rules import StudySettings
from konsil.errors import ConfigError, KonsilError, StudyError
from konsil.node.rules import Rules, read_rule_file

HEAD = """
import numpy as np
from konsil.core.merge import Mixing, Rule, take_options, weighted_mean

def largest(values, weights, out):
    np.copyto(out, values[0])
    for row in values[1:]:
        np.maximum(out, row, out=out)

"""
LARGEST = (
    HEAD + 'def rule(options):\n    return Rule("x", take_options("largest", options, {"f": 1}), largest)\n'
)


def settings(name, digest, **changes):
    return StudySettings(
        name="aml", every_steps=1, min_members=5, quorum=5, rule=name, rule_digest=digest, **changes
    )


@pytest.fixture
def rules(tmp_path):
    return Rules(tmp_path / "rules")


@pytest.fixture
def write(tmp_path):
    def written(text, name="largest"):
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        return file

    return written


def test_a_rule_that_was_added_merges_as_its_file_says(rules, write):
    added = rules.add(write(LARGEST), {})
    assert [each.digest for each in rules.files()] == [added.digest]
    assert stat.S_IMODE(added.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(added.path.parent.stat().st_mode) == 0o700
    agreed = settings("largest", added.digest)
    rules.require(agreed)
    found, out = rules.rule(agreed), np.empty(2)
    found.reduce(np.array([[1.0, 5.0], [4.0, 2.0]]), (1, 1), out)
    assert (found.name, out.tolist()) == ("largest", [4.0, 5.0])
    assert rules.add(write(LARGEST), {}) == added


def test_two_versions_of_a_rule_stand_side_by_side(rules, write):
    one = rules.add(write(LARGEST), {})
    other = rules.add(write(LARGEST.replace("maximum", "minimum")), {})
    assert len(rules.files()) == 2
    for version, expected in ((one, 4.0), (other, 1.0)):
        out = np.empty(1)
        rules.rule(settings("largest", version.digest)).reduce(np.array([[1.0], [4.0]]), (1, 1), out)
        assert out.tolist() == [expected]


def test_a_file_that_is_missing_is_an_error_that_names_both_digests(rules, write):
    wanted, _ = read_rule_file(write(LARGEST))
    agreed = settings("largest", wanted.digest)
    with pytest.raises(ConfigError, match=f"digest {wanted.digest}.*this node has none.*konsil rule add"):
        rules.require(agreed)
    here = rules.add(write(LARGEST + "# another\n"), {})
    for ask in (rules.require, rules.rule):
        with pytest.raises(ConfigError, match=f"{wanted.digest}.*this node has only {here.digest}"):
            ask(agreed)
    assert wanted.digest in rules.problem(agreed)


def test_adding_a_rule_again_replaces_a_file_that_was_changed_since(rules, write):
    added = rules.add(write(LARGEST), {})
    added.path.write_text("changed = 1\n")
    added.path.chmod(0o644)
    assert rules.add(write(LARGEST), {}) == added
    assert [each.is_as_added for each in rules.files()] == [True]
    assert rules.problem(settings("largest", added.digest)) == ""
    assert stat.S_IMODE(added.path.stat().st_mode) == 0o600


def test_a_file_that_was_changed_later_is_not_run(rules, write):
    added = rules.add(write(LARGEST), {})
    added.path.write_text(LARGEST.replace("maximum", "minimum"))
    (changed,) = rules.files()
    assert not changed.is_as_added
    with pytest.raises(ConfigError, match=f"{added.digest}.*was changed.*digest {changed.digest} now"):
        rules.rule(settings("largest", added.digest))
    assert changed.digest in rules.problem(settings("largest", added.digest))


def test_a_rule_that_comes_with_konsil_needs_no_file(rules):
    agreed = settings("median", "")
    rules.require(agreed)
    assert rules.problem(agreed) == ""
    assert rules.rule(agreed).name == "median"
    with pytest.raises(ConfigError, match=r"no merge rule 'meen' in Konsil; there are .*median"):
        Rules().rule(settings("meen", ""))


def test_a_name_from_the_ledger_reaches_no_file_outside(rules, write):
    added = rules.add(write(LARGEST), {})
    outside = added.path.rename(added.path.parent.parent / f"outside-{added.digest}.py")
    for name in ("../outside", str(outside.parent / "outside"), "Outside", ""):
        with pytest.raises(ConfigError, match="no merge rule"):
            rules.rule(settings(name, added.digest))
    with pytest.raises(ConfigError, match="no merge rule"):
        rules.rule(settings("largest", "../" + added.digest))


def test_a_rule_is_held_against_the_quorum_and_its_options(rules, write):
    nine = LARGEST.replace("largest)\n", "largest, members=9)\n")
    added = rules.add(write(nine), {})
    with pytest.raises(ConfigError, match="needs 9 members, but the quorum is 5"):
        rules.require(settings("largest", added.digest))
    with pytest.raises(ConfigError, match="no option 'g'"):
        rules.require(settings("largest", added.digest, rule_options={"g": 1.0}))


def test_a_rule_is_tried_with_the_options_that_a_study_gives_it(rules, write):
    text = LARGEST.replace("largest)\n", "largest if options.get('f') != 3 else sorted)\n")
    added = rules.add(write(text), {})
    rules.require(settings("largest", added.digest, rule_options={"f": 2.0}))
    with pytest.raises(ConfigError, match="its reduce raised TypeError"):
        rules.require(settings("largest", added.digest, rule_options={"f": 3.0}))


def test_the_rule_in_the_documents_is_one(rules, write):
    page = (Path(__file__).parents[3] / "docs/protocol.md").read_text()
    example = page.split("**One's own rule**")[1].split("```python\n")[1].split("```")[0]
    added = rules.add(write(example, "bounded_mean"), {})
    out = np.empty(2)
    found = rules.rule(settings("bounded_mean", added.digest, rule_options={"limit": 3.0}))
    found.reduce(np.array([[1.0, 50.0], [2.0, -1.0]]), (1, 1), out)
    assert out.tolist() == [1.5, 1.0]


MADE = "def rule(options):\n    return Rule('x', {}, reduce)\n"
BROKEN = {
    "not a konsil.core.merge.Rule": "def rule(options):\n    return 1\n",
    "SyntaxError": "def rule(options:\n",
    "ZeroDivisionError": "1 / 0\n",
    "SystemExit": "raise SystemExit\n",
    "has no attribute 'rule'": "",
    "its `members` is 0": "def rule(options):\n    return Rule('x', {}, largest, members=0)\n",
    "gives a NaN or an infinity": "def reduce(values, weights, out):\n    np.log(values[0], out=out)\n"
    + MADE,
    "NaN or an infinity for ordinary": "def reduce(values, weights, out):\n    out[1:] = values[0][1:]\n"
    + MADE,
    "not elementwise": "def reduce(values, weights, out):\n    out[:] = values[0] - values[0].mean()\n"
    + MADE,
    "not elementwise: some": "def reduce(values, weights, out):\n    out[:] = values[0][::-1]\n" + MADE,
    "another result for the same": (
        "from itertools import count\nn = count()\n"
        "def reduce(values, weights, out):\n    out[:] = values[0] + next(n)\n" + MADE
    ),
    "changes how long": (
        "def reduce(values, weights, out):\n    out[:] = values[0]\n    values.shape = (-1, 1)\n" + MADE
    ),
    "reduce raised IndexError": "def reduce(values, weights, out):\n    out[:] = values[3]\n" + MADE,
    "mixing step raised ValueError": (
        "def mix(gram, weights):\n    raise ValueError('no')\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix)\n"
    ),
    "mixing step gives a tuple": (
        "def mix(gram, weights):\n    return (1, 2)\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix)\n"
    ),
    "weights that are not whole": (
        "def mix(gram, weights):\n    return Mixing((0.5,) * len(weights))\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix)\n"
    ),
    "do not fit": (
        "def mix(gram, weights):\n    return Mixing((1, 1, 1))\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix, members=2)\n"
    ),
    "changes the Gram matrix": (
        "def mix(gram, weights):\n    gram[:] = 0\n    return Mixing(tuple(weights))\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix)\n"
    ),
    "other coefficients for the same": (
        "from itertools import count\nn = count(1)\n"
        "def mix(gram, weights):\n    return Mixing((next(n),) * len(weights))\n"
        "def rule(options):\n    return Rule('x', {}, weighted_mean, mix)\n"
    ),
}


@pytest.mark.parametrize(("named", "text"), BROKEN.items(), ids=list(BROKEN))
def test_a_rule_that_does_not_merge_as_it_must_is_not_added(rules, write, named, text):
    with pytest.raises(ConfigError) as caught:
        rules.add(write(HEAD + text), {})
    assert named in str(caught.value)
    assert rules.files() == []


def test_a_sum_in_an_order_that_depends_on_a_library_is_not_elementwise(rules, write):
    dot = "def reduce(values, weights, out):\n    out[:] = np.array(weights, float) @ values / sum(weights)\n"
    with pytest.raises(ConfigError, match="not elementwise"):
        rules.add(write(HEAD + dot + MADE), {})


@pytest.mark.parametrize("name", ["Largest", "9", "a b"])
def test_a_file_must_be_called_as_a_rule_can_be(rules, write, name):
    with pytest.raises(ConfigError, match="not the name of a merge rule's file"):
        rules.add(write(LARGEST, name), {})


def test_a_file_that_cannot_be_read_or_takes_a_known_name_is_refused(rules, write, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        rules.add(tmp_path / "away.py", {})
    with pytest.raises(ConfigError, match="'mean' comes with Konsil already"):
        rules.add(write(LARGEST, "mean"), {})
    with pytest.raises(ConfigError, match="over 1048576 bytes"):
        rules.add(write(LARGEST + "#" * 1024 * 1024), {})


def test_a_rule_that_fails_in_a_merge_is_a_sentence(rules, write):
    text = (
        "def reduce(values, weights, out):\n"
        "    if values[0][0] == 7:\n        raise ValueError('seven')\n"
        "    np.copyto(out, values[0])\n"
        "    out[values[0] == 8] = np.nan\n"
    )
    added = rules.add(write(HEAD + text + MADE), {})
    found, out = rules.rule(settings("largest", added.digest)), np.empty(1)
    with pytest.raises(StudyError, match=r"raised ValueError: seven\. Nothing was published"):
        found.reduce(np.array([[7.0]]), (1,), out)
    with pytest.raises(StudyError, match=r"gave a NaN or an infinity\. Nothing was published"):
        found.reduce(np.array([[8.0]]), (1,), out)
    assert isinstance(found, Rule)
    assert issubclass(StudyError, KonsilError)
