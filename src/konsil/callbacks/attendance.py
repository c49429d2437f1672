"""What all callbacks share: a place in a study that begins and ends with a framework's own training loop."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from konsil.core.rules.scores import MAX_METRICS
from konsil.errors import ConfigError, StudyError
from konsil.learners.protocols import Array
from konsil.session.display import beside_a_bar
from konsil.session.joining import join
from konsil.session.swarm import Swarm

_UNFIT = re.compile(r"[^A-Za-z0-9_.@-]")
"""What the name of a metric on the ledger cannot have; frameworks use a slash, for one."""

_LONGEST_METRIC = 64

_TAKEN = {"examples", "self"}
"""Names of what else ``Swarm.score`` takes: a metric of such a name gets an underscore more."""


class Attendance:
    """One training loop's place in a study: taken when the loop begins, given up however it ends.

    ``fresh``: the model is as the last merge (or joining) left it; nothing was trained since.
    """

    def __init__(self, study: str, *, score: bool, options: Mapping[str, Any]) -> None:
        """Prepare; nothing is connected yet.

        Args:
            study: the study's name.
            score: whether scores go on the ledger.
            options: further arguments of ``konsil.join``.
        """
        self.study = study
        self.fresh = False
        self.kept_open = False
        self._scores = score
        self._options = dict(options)
        self._swarm: Swarm | None = None
        self._final: dict[str, Array] = {}
        self._finalizer: weakref.finalize[..., Any] | None = None

    @property
    def swarm(self) -> Swarm:
        """The session.

        Raises:
            StudyError: the training has not begun.
        """
        if self._swarm is None:
            raise StudyError(
                f"This callback takes no part in study {self.study!r} now: not begun, or over.",
                do="To use `swarm` after the training, as for `swarm.save(path)`, write"
                " `with SwarmCallback(...) as callback:` around it.",
            )
        return self._swarm

    @property
    def over(self) -> bool:
        """Whether the study is over, so that the loop should stop."""
        return self.swarm.finished

    @property
    def figures(self) -> dict[str, float]:
        """The last round for the framework's own logs: its number, who took part and who did not."""
        last = self.swarm.last
        return {
            "konsil_round": 0.0 if last is None else float(last.round),
            "konsil_members": 0.0 if last is None else float(len(last.members)),
            "konsil_absent": 0.0 if last is None else float(len(last.absent)),
        }

    def begin(self, model: Any, **found: Any) -> None:
        """Join, or go on in a session that was kept open.

        Args:
            model: what ``konsil.join`` takes.
            **found: arguments of ``join`` that the framework knew; what the script said goes before.

        Raises:
            ConfigError: the session that was kept open trains another model, or cannot go on with this loop's
                optimiser.
            KonsilError: as ``konsil.join``.
        """
        options = found | self._options
        # The framework's own bar shows how far training is.
        options["progress"] = beside_a_bar(options.get("progress"))
        if self._swarm is not None and not self.kept_open:
            self.leave()  # a loop that raised, and nobody told this callback
        if self._swarm is None:
            swarm = join(self.study, model, **options)
            self._swarm = swarm
            # Leaves when the callback is garbage or the interpreter ends: frameworks do not tell of errors.
            self._finalizer = weakref.finalize(self, swarm.leave)
            self._note(loaded=True)
        elif model is not self._swarm.model:
            raise ConfigError(
                "This loop trains another model than the one before it in the same `with`.",
                safe="Nothing was sent; this model is untouched, and the one before stays as it is.",
                do="Use a callback and a `with` of its own for each model.",
            )
        else:
            # Each loop of Lightning's makes an optimiser of its own, and so does each new Trainer.
            self._swarm.learner.go_on_with(options.get("optimizer"))

    def step(self, examples: int, steps: int = 1) -> bool:
        """Count steps of training that are over.

        After the study's end its last merge is put back instead: a loop may train on before it stops.

        Args:
            examples: how many examples all these steps were trained on.
            steps: how many steps; what was trained after one that is due is merged with it.

        Returns:
            Whether a merge was loaded into the model.

        Raises:
            KonsilError: as ``Swarm.step``.
        """
        if self.over:
            self._put_back()
            return False
        self.fresh = False
        merged = self.swarm.step(examples)
        for _ in range(steps - 1):
            merged = merged or self.swarm.step(0)
        self._note(loaded=merged)
        return merged

    def epoch(self, examples: int = 0) -> bool:
        """Count the end of an epoch; of one whose whole training a merge has just replaced, nothing.

        Args:
            examples: trained on in it and not yet counted by ``step``.

        Returns:
            Whether a merge was loaded into the model.

        Raises:
            KonsilError: as ``Swarm.epoch``.
        """
        if self.over or (self.fresh and not examples):
            return False
        self.fresh = False
        merged = self.swarm.epoch(examples)
        self._note(loaded=merged)
        return merged

    def score(self, examples: int, scores: Mapping[str, float]) -> bool:
        """Put scores on the ledger if they are the last merge's: nothing was trained before they were taken.

        Args:
            examples: how many they were measured on; with 0 they are nobody's.
            scores: by name, "loss" among them where there is one. What is not finite is left out.

        Returns:
            Whether they went on the ledger. A merge is scored once, whoever did: ``evaluate`` may have.

        Raises:
            KonsilError: as ``Swarm.score``.
        """
        if (
            not self._scores
            or not self.fresh
            or self.swarm.last is None
            or self.swarm.scored_last
            or not examples
        ):
            return False
        finite = {_metric(name): float(value) for name, value in scores.items() if math.isfinite(value)}
        loss = finite.pop("loss", None)
        if loss is None and not finite:
            return False
        metrics = dict(sorted(finite.items())[:MAX_METRICS])
        self.swarm.score(examples=examples, loss=loss, **metrics)
        return True

    def end(self) -> None:
        """The loop has come to its end: finish, unless a ``with`` around it keeps the place.

        Raises:
            KonsilError: as ``Swarm.close``.
        """
        if not self.kept_open:
            self.close()

    def close(self) -> None:
        """Finish. Closing twice is harmless.

        Raises:
            KonsilError: as ``Swarm.close``.
        """
        swarm = self._let_go()
        if swarm is not None:
            swarm.close()

    def leave(self) -> None:
        """Stop without finishing: the others go on. Never raises."""
        swarm = self._let_go()
        if swarm is not None:
            swarm.leave()

    def _let_go(self) -> Swarm | None:
        swarm, self._swarm = self._swarm, None
        self._final, self.fresh = {}, False
        if self._finalizer is not None:
            self._finalizer.detach()
        return swarm

    def _note(self, *, loaded: bool) -> None:
        self.fresh = self.fresh or loaded
        if loaded and self.over:
            # Not `copy`: an array from an accelerator is made when numpy asks for it.
            self._final = {name: np.array(array) for name, array in self.swarm.learner.parameters().items()}

    def _put_back(self) -> None:
        if self._final:
            self.swarm.learner.load(self._final)


class Attending:
    """What every ``SwarmCallback`` has. In a ``with`` it outlives one training loop."""

    _attendance: Attendance

    @property
    def swarm(self) -> Swarm:
        """The session: its ``round``, ``last``, ``ended`` and so on.

        Raises:
            StudyError: the training has not begun, or is over.
        """
        return self._attendance.swarm

    def leave(self) -> None:
        """Stop without finishing: the study goes on without this member. Never raises."""
        self._attendance.leave()

    def __enter__(self) -> Self:
        """Keep the place in the study until the ``with`` ends, over any number of training loops."""
        self._attendance.kept_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish; after an error, leave."""
        self._attendance.kept_open = False
        if kind is None:
            self._attendance.close()
        else:
            self.leave()


def counted(examples: int | Callable[[Any], int] | None, of: Any) -> int | None:
    """How many examples the script says that a batch has; None if it says nothing.

    Raises:
        ConfigError: it says less than 0.
    """
    if examples is None:
        return None
    number = examples(of) if callable(examples) else examples
    if number < 0:
        raise ConfigError(
            f"`examples` said that a batch has {number} examples.", do="Say how many there are."
        )
    return int(number)


def _metric(name: str) -> str:
    name = _UNFIT.sub("_", name)[:_LONGEST_METRIC]
    return f"{name}_" if name in _TAKEN else name
