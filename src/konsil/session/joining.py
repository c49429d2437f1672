"""``join``: from what a training script says to a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, get_args

from konsil.core.rules.calls import Contribution
from konsil.core.wall import Waiting
from konsil.errors import ConfigError
from konsil.learners import LocalTraining
from konsil.session.after import AfterMerge, Evaluate, OnRound
from konsil.session.connection import CONNECT_S, Connection
from konsil.session.display import Display, display_for
from konsil.session.place import socket_path
from konsil.session.resume import place_of
from konsil.session.swarm import Swarm


def join(  # noqa: PLR0913 - all that a script may choose, by keyword, in one place
    study: str,
    model: Any,
    *,
    node: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
    after: Contribution = "inactive",
    evaluate: Evaluate | None = None,
    on_round: OnRound | Iterable[OnRound] = (),
    on_waiting: Callable[[Waiting], None] | None = None,
    progress: bool | Display | None = None,
    resume: str | os.PathLike[str] | None = None,
    preprocessing: Any = None,
    optimizer: Any = None,
    reset_optimizer: bool = False,
) -> Swarm:
    """Join a study with a model: afterwards the model holds the parameters that all start from.

    Args:
        study: the study's name.
        model: a dict of numpy arrays, a scikit-learn estimator or Pipeline, a PyTorch module, a Keras model,
            or a ``Learner``.
        node: the node's socket, or the directory that it is in. Without it: the environment's
            ``KONSIL_SOCKET``, else ``KONSIL_DIR``, else ``~/.konsil``.
        timeout_s: the longest wait for node or swarm, in seconds. Without it: 10 s for a node to be there,
            10 minutes for one to come back, and for a merge what the study's settings allow.
        after: what this member keeps contributing when the ``with`` ends before the study does.
        evaluate: called with the model after each merge that was loaded, one at joining included. It
            returns by their names ``examples``, how many it was scored on, ``loss``, if there is one, and
            any other metrics. They go on the ledger.
        on_round: called with the swarm after each merge, once it is evaluated; see
            ``konsil.session.trackers``.
        on_waiting: told of what the node waits for. Without it: ``progress`` shows it.
        progress: show how it goes. Without it: on a terminal's stderr and in a notebook; False: nowhere;
            True: finished rounds on stderr even where nobody watches; or a ``Display`` of your own.
        resume: a file, or a folder for it, to which local parameters and the optimiser's state are written
            after each merge, and from which they are read back when the script is started again.
        preprocessing: this member's own training rows, which stay here: the preprocessing of a Pipeline is
            fitted together at once, as by ``Swarm.fit_preprocessing``.
        optimizer: the PyTorch optimiser that trains the model; needed where the study has a local term
            (``prox``) or control variates (``scaffold``).
        reset_optimizer: forget the optimiser's state after each merge. Without it, it stays as it is.

    Raises:
        ConfigError: no learner for this model, it cannot be used as it is, what ``evaluate`` gave are no
            scores, or the file of ``resume`` is damaged or another's.
        NodeUnreachable: no node answers there.
        SchemaMismatch: the study has other parameters than this model.
        StudyError: the node knows no such study, or it did not start in time.
        KonsilError: why the node refused.
    """
    _require_sense(after, evaluate)
    place, display = place_of(resume), display_for(progress)
    after_merge = AfterMerge(resume=place, evaluate=evaluate, display=display, on_round=on_round)
    away_s = CONNECT_S if timeout_s is None else timeout_s
    shown = on_waiting or after_merge.waiting
    connection = Connection(socket_path(node), study, away_s=away_s, on_waiting=shown)
    training = LocalTraining(optimizer, reset_optimizer)
    session = _session_type()
    swarm = session(
        connection, model, timeout_s=timeout_s, after=after, training=training, after_merge=after_merge
    )
    if preprocessing is not None:
        try:
            swarm.fit_preprocessing(preprocessing)
        except BaseException:
            swarm.leave()
            raise
    return swarm


def _require_sense(after: str, evaluate: Any) -> None:
    """See that what is only used later can be: an error after hours of training would come too late."""
    if after not in get_args(Contribution):
        raise ConfigError(
            f"`after` is {after!r}; it can be {', '.join(map(repr, get_args(Contribution)))}.",
            safe="Nothing was sent; the model is untouched.",
            do="Correct it.",
        )
    if evaluate is not None and not callable(evaluate):
        raise ConfigError(
            f"`evaluate` is a {type(evaluate).__name__}, and cannot be called.",
            safe="Nothing was sent; the model is untouched.",
            do='Pass a function of the model that returns for example {"examples": 120, "auc": 0.92}.',
        )


def _session_type() -> type[Swarm]:
    """A plain session; in a process that is one of several of a hospital, one that is in step with these."""
    if "torch" not in sys.modules:
        return Swarm
    from konsil.session.distributed import session_type  # noqa: PLC0415 - PyTorch is there, if this is reached

    return session_type()
