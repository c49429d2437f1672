"""Resume files of a hostile hand: each is refused in sentences, and leaves model and optimiser as they were."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest

from konsil.core.digest import bytes_digest
from konsil.core.parameters import file_pieces
from konsil.errors import ConfigError
from konsil.learners import learner_for
from konsil.learners.protocols import LocalTraining
from konsil.session.resume import LocalFile, _Whose

torch = pytest.importorskip("torch", reason="NOT CHECKED: torch is not installed")


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def whose(values):
    """The word that a file of this study's member 'a' has in its metadata."""
    word = _Whose("s", "aml", "a", 1, "d", bytes_digest(values, "local state"))
    return {"konsil_resume": msgspec.json.encode(word).decode()}


class Training:
    """A small model with what stays here (its bias), after one step."""

    def __init__(self, folder, make=adam, dtype=torch.float32):
        torch.manual_seed(1)
        self.net = torch.nn.Linear(3, 2).to(dtype)
        self.net.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
        self.optimizer = make(self.net.parameters())
        self.net(torch.ones(1, 3, dtype=dtype)).float().sum().backward()
        self.optimizer.step()
        self.learner = learner_for(self.net, ("bias", "mask"), LocalTraining(self.optimizer))
        self.file = LocalFile(folder / "r.safetensors", swarm="s", study="aml", member="a")

    def state(self):
        return {name: np.array(array) for name, array in self.learner.local_state().items()}

    def load(self, arrays):
        """Load a file that says of itself that it is whole and this member's."""
        metadata = whose(b"".join(bytes(piece) for piece in list(file_pieces(arrays, {}))[1:]))
        self.file.path.write_bytes(b"".join(bytes(piece) for piece in file_pieces(arrays, metadata)))
        return self.file.load(self.learner, 1, "d")

    def held(self):
        return copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


STEP, MOMENT, RATE = "state/tensor/0/step", "state/tensor/0/exp_avg", "state/group/0/lr"


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("state/tensor/x", np.zeros(1), "'tensor/x' is no setting"),
        ("state/tensor/-1/exp_avg", np.zeros((2, 3), np.float32), "holds no parameter -1"),
        ("state/tensor/9/exp_avg", np.zeros((2, 3), np.float32), "holds no parameter 9"),
        ("state/number/0/beta", np.zeros(3), r"has shape \(3,\), not \(\)"),
        ("state/bf16/0/exp_avg", np.zeros((2, 3)), "instead of the bits of bfloat16"),
        ("state/bf16/0/exp_avg", np.full((2, 3), 0x7F80, np.uint16), "holds a NaN or an infinity"),
        ("state/group/x/lr", np.array(0.1), "'group/x/lr' is no setting"),
        ("state/other/0/lr", np.array(0.1), "'other/0/lr' is not expected"),
        ("held/bias", np.zeros(2, np.float32), "'bias' is not expected"),
        ("elsewhere", np.array(0.1), "'elsewhere' is not expected"),
        (RATE, np.zeros(3), r"float64 \(3,\) instead of float64 \(\)"),
        (RATE, np.array(np.nan), "'group/0/lr' holds a NaN"),
        ("state/group/0/betas", np.zeros(3), r"\(3,\) instead of float64 \(2,\)"),
        ("state/group/0/amsgrad", np.array(5.0), r"float64 \(\) instead of bool"),
        (STEP, np.zeros(5, np.float32), r"has shape \(5,\), not \(\)"),
        (STEP, np.array(np.inf, np.float32), "'tensor/0/step' holds a NaN or an infinity"),
        (MOMENT, np.zeros(7, np.float32), r"has shape \(7,\), not \(2, 3\)"),
        (MOMENT, np.zeros((3, 2), np.float32), r"has shape \(3, 2\), not \(2, 3\)"),
        (MOMENT, np.full((2, 3), np.nan, np.float32), "'tensor/0/exp_avg' holds a NaN or an infinity"),
        ("state/stays/bias", np.full(2, np.inf, np.float32), "'bias' holds a NaN or an infinity"),
        ("state/stays/mask", np.full(2, -np.inf, np.float32), "'mask' holds a NaN or an infinity"),
    ],
)
def test_a_hostile_entry_is_refused_and_nothing_is_changed(training, name, array, why):
    before = training.held()
    with pytest.raises(ConfigError, match=rf"r\.safetensors does not fit the model.*{why}"):
        training.load(training.state() | {name: array})
    _same(before, training.held())


def test_an_empty_array_of_absurd_sizes_is_refused_as_damaged(training):
    entry = {"dtype": "F32", "shape": [0] + [1 << 40] * 8, "data_offsets": [0, 0]}
    hostile = msgspec.json.encode({"__metadata__": whose(b""), "x": entry})
    training.file.path.write_bytes(len(hostile).to_bytes(8, "little") + hostile)
    with pytest.raises(ConfigError, match="is damaged or no such file"):
        training.file.load(training.learner, 1, "d")


KINDS = ("Adam", "SGD", "Adagrad", "Adafactor", "Rprop", "RMSprop", "NAdam", "ASGD")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float32) for kind in KINDS]
    + [(kind, torch.bfloat16) for kind in KINDS[:-2]],  # torch itself rounds the others' factors to bfloat16
)
def test_what_an_optimiser_wrote_it_takes_back_infinite_masks_included(tmp_path, kind, dtype):
    options = {"momentum": 0.9} if kind in {"SGD", "RMSprop"} else {}
    training = Training(tmp_path, lambda own: getattr(torch.optim, kind)(own, lr=0.1, **options), dtype)
    before = training.held()
    assert training.load(training.state())
    _same(before, training.held())


def _same(mine, its):
    """Two states of model and optimiser, bit for bit."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, its)
    elif isinstance(mine, dict):
        assert mine.keys() == its.keys()
        for key, value in mine.items():
            _same(value, its[key])
    elif isinstance(mine, tuple | list):
        for one, other in zip(mine, its, strict=True):
            _same(one, other)
    else:
        assert mine == its
