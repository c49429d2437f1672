"""Merge rules: those that come with Konsil, and those in files that somebody put into this node by hand.

A rule's file is Python that the node runs. So no file ever comes from a peer, and none is used that is not,
byte for byte, what the study's members agreed to: the file is digested again whenever it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import bytes_digest, is_digest
from konsil.core.merge import Mixing, Rule, rule, try_rule
from konsil.core.merge.reduce import Reduce
from konsil.core.merge.rule import Mix
from konsil.core.rules import BUILT_IN_RULES, RULE_NAME, StudySettings, check_against_rule
from konsil.errors import ConfigError, KonsilError, StudyError
from konsil.identity.files import write_private

MAX_RULE_BYTES = 1024 * 1024
"""A rule is a page of Python; anything larger is another file by mistake."""

RULE_CONTEXT = "rule"

_SAFE = "Nothing was changed."


def built_in(settings: StudySettings) -> Rule:
    """A study's merge rule where that comes with Konsil.

    Raises:
        ConfigError: it does not.
    """
    return rule(settings.rule, settings.rule_options)


@dataclass(frozen=True)
class RuleFile:
    """A merge rule in a file. ``digest``: of the file's bytes, as a study's ``rule_digest`` names it."""

    name: str
    digest: str
    path: Path

    @property
    def is_as_added(self) -> bool:
        """Whether a stored file still holds the bytes that it is called by."""
        return self.path.stem == f"{self.name}-{self.digest}"


class Rules:
    """The merge rules that this node can merge by."""

    def __init__(self, directory: Path | None = None) -> None:
        """``directory``: where the files are; it need not exist. None: only what comes with Konsil."""
        self.directory = directory

    def add(self, file: Path, options: Mapping[str, float]) -> RuleFile:
        """Try a rule and put its file into this node's directory, in place of one that was changed there.

        Args:
            file: NAME.py with ``def rule(options) -> konsil.core.merge.Rule``.
            options: to try it with.

        Raises:
            ConfigError: the file cannot be read or loaded, or the rule does not merge as it must.
        """
        if self.directory is None:
            raise ConfigError("This node has no folder for merge rules.", safe=_SAFE)
        found, data = read_rule_file(file)
        if found.name in BUILT_IN_RULES:
            raise ConfigError(
                f"A merge rule '{found.name}' comes with Konsil already.",
                safe=_SAFE,
                do="Give the file another name.",
                rule=found.name,
            )
        try_rule(lambda: _made(found, data, options))
        stored = replace(found, path=self._path(found.name, found.digest))
        write_private(stored.path, data, replace=True)  # also where it is: its bytes may not be these
        return stored

    def files(self) -> list[RuleFile]:
        """The rules that are here in files, by name, each with the digest that its bytes have now."""
        paths = sorted(self.directory.glob("*.py")) if self.directory is not None else []
        found = []
        for path in paths:
            name = path.stem.rpartition("-")[0] or path.stem
            found.append(RuleFile(name, bytes_digest(_bytes_of(path), RULE_CONTEXT), path))
        return found

    def rule(self, settings: StudySettings) -> Rule:
        """A study's merge rule, ready to merge.

        Raises:
            ConfigError: it is not here, is another one than the members agreed to, or does not take the
                options.
        """
        if settings.rule in BUILT_IN_RULES:
            return built_in(settings)
        found, data = self._file(settings)
        return _guarded(_made(found, data, settings.rule_options))

    def problem(self, settings: StudySettings) -> str:
        """Why this node cannot merge by a study's rule, in sentences; "" if nothing is known against it."""
        if settings.rule not in BUILT_IN_RULES:
            try:
                self._file(settings)
            except ConfigError as error:
                return str(error)
        return ""

    def require(self, settings: StudySettings) -> None:
        """See that this node could merge by a study's rule, before anybody proposes or agrees to it.

        Raises:
            ConfigError: it is not here, is another one, does not merge as it must with these options, or
                needs more members than the quorum.
        """
        check_against_rule(settings, self.rule(settings))
        if settings.rule not in BUILT_IN_RULES:
            found, data = self._file(settings)
            try_rule(lambda: _made(found, data, settings.rule_options))

    def _path(self, name: str, digest: str) -> Path:
        if self.directory is None or not RULE_NAME.fullmatch(name) or not is_digest(digest):
            raise ConfigError(f"There is no merge rule '{name[:80]}' in Konsil.", do="Correct `rule`.")
        return self.directory / f"{name}-{digest}.py"

    def _file(self, settings: StudySettings) -> tuple[RuleFile, bytes]:
        name, digest = settings.rule, settings.rule_digest
        if not digest:
            built_in(settings)  # raises, and says which there are
        path = self._path(name, digest)
        data = _bytes_of(path) if path.exists() else None
        actual = bytes_digest(data, RULE_CONTEXT) if data is not None else ""
        if data is None or actual != digest:
            raise self._lacks(settings, actual)
        return RuleFile(name, digest, path), data

    def _lacks(self, settings: StudySettings, actual: str) -> ConfigError:
        name, digest = settings.rule, settings.rule_digest
        if actual:
            what = f"Its file on this node was changed since it was added: it has digest {actual} now."
        else:
            others = [file.digest for file in self.files() if file.name == name]
            here = f"of that name this node has only {', '.join(others)}" if others else "this node has none"
            what = f"It is not on this node: {here}."
        return ConfigError(
            f"Study '{settings.name}' merges by the rule '{name}' from the file with digest {digest}. {what}",
            safe="This node does not merge by another rule than the members agreed to.",
            do="Get that file from the study's proposer, read it, and add it: `konsil rule add FILE`.",
            rule=name,
            digest=digest,
            here=actual,
        )


def read_rule_file(file: Path) -> tuple[RuleFile, bytes]:
    """A rule's file as somebody wrote it: its name, digest and bytes; nothing of it is run.

    Raises:
        ConfigError: it cannot be read, is too large, or is not called as a rule can be.
    """
    if file.suffix != ".py" or not RULE_NAME.fullmatch(file.stem):
        raise ConfigError(
            f"{file.name} is not the name of a merge rule's file.",
            safe=_SAFE,
            do="Call it NAME.py: small letters, digits, hyphens and underscores, a letter first.",
            file=str(file),
        )
    data = _bytes_of(file)
    return RuleFile(file.stem, bytes_digest(data, RULE_CONTEXT), file), data


def rule_in_file(file: Path, settings: StudySettings) -> tuple[Rule, str]:
    """A study's merge rule from a file that was not added to any node, and the file's digest.

    Raises:
        ConfigError: another name or digest than the settings have, or a file that cannot be used.
    """
    found, data = read_rule_file(file)
    if found.name != settings.rule or settings.rule_digest not in {"", found.digest}:
        raise ConfigError(
            f"{file} holds the rule '{found.name}' with digest {found.digest}; the study's is "
            f"'{settings.rule}'" + (f" with digest {settings.rule_digest}." if settings.rule_digest else "."),
            safe=_SAFE,
            do="Correct the study's `rule` and `rule_digest`, or give the other file.",
        )
    try_rule(lambda: _made(found, data, settings.rule_options))
    return _guarded(_made(found, data, settings.rule_options)), found.digest


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RULE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The merge rule's file {path} cannot be read: {error.strerror}.",
            safe=_SAFE,
            do="See that it is there and that the node's user may read it.",
            file=str(path),
        ) from error
    if len(data) > MAX_RULE_BYTES:
        raise ConfigError(f"{path} is over {MAX_RULE_BYTES} bytes: it is no merge rule's file.", safe=_SAFE)
    return data


def _made(file: RuleFile, data: bytes, options: Mapping[str, float]) -> Rule:
    """Run a rule's file and make the rule."""
    module = ModuleType(f"konsil_rule_{file.name}")
    try:
        exec(compile(data, str(file.path), "exec"), module.__dict__)  # noqa: S102 - IT put it here to be run
        made = module.rule(options)
    except KonsilError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The merge rule's file {file.path} cannot be used: {type(error).__name__}: {error}.",
            safe=_SAFE,
            do="It must define `def rule(options)` that gives a konsil.core.merge.Rule.",
            file=str(file.path),
        ) from error
    if not isinstance(made, Rule):
        raise ConfigError(
            f"`rule` in {file.path} gives a {type(made).__name__}, not a konsil.core.merge.Rule.",
            safe=_SAFE,
            do="It must make one: see 'One's own rule' in docs/protocol.md.",
            file=str(file.path),
        )
    return replace(made, name=file.name)


# --- merging by code that somebody else wrote ----------------------------------------------------

Floats = NDArray[np.float64]
T = TypeVar("T")


def _guarded(made: Rule) -> Rule:
    """The rule, whose failures are a sentence and not a fault of the node."""
    return replace(
        made,
        reduce=_guarded_reduce(made.name, made.reduce),
        mix=_guarded_mix(made.name, made.mix) if made.mix is not None else None,
    )


def _guarded_reduce(name: str, reduce: Reduce) -> Reduce:
    def guarded(values: Floats, weights: Sequence[int], out: Floats) -> None:
        _run(name, lambda: reduce(values, weights, out))
        if not np.isfinite(out).all():
            raise StudyError(
                f"The merge rule '{name}' gave a NaN or an infinity.",
                safe="Nothing was published; accepted rounds are safe.",
                do=_REPLACE,
                rule=name,
            )

    return guarded


def _guarded_mix(name: str, mix: Mix) -> Mix:
    def guarded(gram: Floats, weights: Sequence[int]) -> Mixing:
        return _run(name, lambda: mix(gram.copy(), weights))

    return guarded


def _run(name: str, work: Callable[[], T]) -> T:
    try:
        with np.errstate(all="ignore"):  # what is not finite is found afterwards
            return work()
    except Exception as error:
        raise StudyError(
            f"The merge rule '{name}' raised {type(error).__name__}: {error}"[:500] + ".",
            safe="Nothing was published; accepted rounds are safe.",
            do=_REPLACE,
            rule=name,
        ) from error


_REPLACE = "Have the rule corrected, and change the study's `rule_digest` by vote: `konsil study change`."
