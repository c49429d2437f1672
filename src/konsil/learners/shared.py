"""What of a learner travels, and what a session asks of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from konsil.core.parameters import Schema
from konsil.errors import ConfigError, KonsilError, StudyError
from konsil.learners.protocols import (
    Array,
    Ending,
    GoingOn,
    Learner,
    Observing,
    Resuming,
    Steered,
)
from konsil.learners.strangers import different

_HELD, _STATE = "held/", "state/"
"""Before the names of arrays that stay, and of a learner's further state, in ``local_state``."""


class Shared:
    """The part of a learner's parameters that travels.

    Floating-point arrays travel. Integer and boolean ones (such as BatchNorm's counter) stay, since their
    mean means nothing, and so does every name that matches a pattern of ``local``.
    """

    def __init__(self, learner: Learner, local: Sequence[str] = ()) -> None:
        """Wrap a learner; ``local`` are patterns as in ``fnmatch``, with case."""
        self._learner = learner
        self._local = tuple(local)

    @property
    def learner(self) -> Learner:
        """What is wrapped."""
        return self._learner

    def parameters(self) -> dict[str, Array]:
        """The arrays that travel, sorted by name.

        Raises:
            ConfigError: none is left to travel.
        """
        arrays = self._read()
        travelling = {name: arrays[name] for name in sorted(arrays) if self._travels(name, arrays[name])}
        if not travelling:
            raise ConfigError(
                f"None of the model's {len(arrays)} arrays would travel.",
                safe="Nothing was sent.",
                do="Only floating-point arrays do, and no name that matches the study's `local` patterns"
                f" ({', '.join(self._local) or 'none'}).",
            )
        return travelling

    def schema(self) -> Schema:
        """Names, dtypes and shapes of what travels.

        Raises:
            ConfigError: nothing is left to travel.
            ParametersError: an array that cannot be merged, by name.
        """
        arrays = self.parameters()
        return Schema.of(arrays, arrays.keys() & set(self._bf16))

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy values into the model, in place."""
        self._learner.load(arrays)

    def begin_round(self) -> None:
        """The model was just loaded: training starts from here."""
        if isinstance(self._learner, Steered):
            self._learner.begin_round()

    def go_on_with(self, optimizer: Any) -> None:
        """From here on this optimiser trains the model; what the study and the script ask goes on with it.

        Raises:
            ConfigError: it cannot be done with it; nothing was changed.
        """
        if isinstance(self._learner, GoingOn):
            self._learner.go_on_with(optimizer)

    def local_state(self) -> dict[str, Array]:
        """What does not travel, as named arrays: those that stay here, and the learner's further state."""
        arrays = self._read()
        state = {_HELD + name: array for name, array in arrays.items() if not self._travels(name, array)}
        if isinstance(self._learner, Resuming):
            state |= {_STATE + name: array for name, array in self._learner.local_state().items()}
        return state

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take back what ``local_state`` gave.

        Raises:
            ConfigError: it is not of this model, or of another optimiser; nothing was changed.
        """
        held = {name: array for name, array in self._read().items() if not self._travels(name, array)}
        given, state = _under(_HELD, arrays), _under(_STATE, arrays)
        wrong = different(held, given, set(self._bf16))
        wrong += [f"'{name}' is not expected" for name in arrays if not name.startswith((_HELD, _STATE))]
        if state and not isinstance(self._learner, Resuming):
            wrong.append(f"a {type(self._learner).__name__} has no further state")
        if wrong:
            raise ConfigError(
                f"The local state is another model's: {'; '.join(wrong[:5])}.",
                safe="Nothing was loaded.",
                do="Build the model and its optimiser as before.",
            )
        if isinstance(self._learner, Resuming):
            self._learner.load_local_state(state)
        self._learner.load(given)

    def end(self) -> None:
        """The session is over: the framework's training is left alone from now on."""
        if isinstance(self._learner, Ending):
            self._learner.end()

    @property
    def fitted(self) -> bool:
        """Whether the model can be used: all preprocessing is fitted, or there is none."""
        return bool(getattr(self._learner, "fitted", True))

    def require_rounds(self, left: int) -> None:
        """See that a study has as many rounds left as fitting the preprocessing takes.

        Raises:
            StudyError: it has not, so nobody could ever use what came out.
        """
        needed = int(getattr(self._learner, "rounds_to_fit", 0))
        if needed > left:
            raise StudyError(
                f"Fitting the preprocessing takes {needed} rounds more, one for each mean, and the study has"
                f" {left} left.",
                safe="Nothing was sent.",
                do="Give the study more `rounds`: those of the preprocessing, and then those in which the"
                " model is trained.",
            )

    def require_fitted(self, ended: str) -> None:
        """See that the preprocessing is fitted, now that a study is over. ``ended``: why it is.

        Raises:
            StudyError: it is not.
        """
        if not self.fitted:
            raise StudyError(
                f"The study is over before the preprocessing was fitted together: {ended}",
                safe="Nothing more was sent. The model cannot be used: its preprocessing is not fitted.",
                do="Take part in a study with more rounds, and one that ends neither on a score nor on time"
                " before that.",
            )

    def observe(self, data: Any, weight: int) -> bool:
        """Prepare the merge that fits the next step of the preprocessing; False once all are fitted.

        Raises:
            ConfigError: this kind of model has no preprocessing that is fitted together.
        """
        if not isinstance(self._learner, Observing):
            raise ConfigError(
                f"{type(self._learner).__name__} has no preprocessing that could be fitted together.",
                safe="Nothing was sent.",
                do="Join with a scikit-learn Pipeline whose steps can: docs/data-scientist.md names them.",
            )
        return self._learner.observe(data, weight)

    def _read(self) -> dict[str, Array]:
        try:
            return self._learner.parameters()
        except KonsilError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The model's parameters cannot be read: {type(error).__name__}: {error}",
                safe="Nothing was sent; the others go on.",
                do=f"See the error above this one; the learner is {type(self._learner).__qualname__}.",
            ) from error

    def _travels(self, name: str, array: Array) -> bool:
        floating = np.issubdtype(array.dtype, np.floating) or name in self._bf16
        return floating and not any(fnmatchcase(name, pattern) for pattern in self._local)

    @property
    def _bf16(self) -> Collection[str]:
        names: Collection[str] = getattr(self._learner, "bf16", ())
        return names


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
