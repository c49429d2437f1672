"""PyTorch training between merges: FedProx, SCAFFOLD, mixed precision, accumulation, compiled models."""

from __future__ import annotations

import copy
import gc
import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from konsil.core.merge import merge_chunk, rule
from konsil.core.parameters import views
from konsil.errors import ConfigError
from konsil.learners import LocalTraining, learner_for
from konsil.wall.layout import read_arrays, seal_arrays

if find_spec("torch") is None:
    if os.environ.get("CI", "").lower() == "true":
        raise ImportError("torch is missing in CI")
    pytest.skip("NOT CHECKED: torch is not installed", allow_module_level=True)

import torch
from torch import nn

pytestmark = pytest.mark.real


def merge(learners, weights=None):
    """A round's end at all members: sealed, merged by the mean as the nodes do it, loaded, begun anew."""
    schema = learners[0].schema()
    sealed = [seal_arrays(schema, learner.parameters()) for learner in learners]
    chunks = [read_arrays(each, schema)[1] for each in sealed]
    out = bytearray(schema.data_bytes)
    runs = schema.runs(0, schema.data_bytes)
    merge_chunk(rule("mean", {}), runs, chunks, weights or [1] * len(learners), memoryview(out))
    merged = views(schema, memoryview(out).toreadonly())
    for learner in learners:
        learner.load(merged)
        learner.begin_round()
    del chunks
    for each in sealed:
        each.close()
    return merged


def start(learners):
    """All begin with the first one's parameters."""
    initial = {name: np.array(array) for name, array in learners[0].parameters().items()}
    for learner in learners:
        learner.load(initial)
        learner.begin_round()


class Quadratic(nn.Module):
    """The loss curvature/2 * (w - minimum)^2, element by element."""

    def __init__(self, minimum, curvature, begin=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), begin))
        self.minimum, self.curvature = minimum, curvature

    def forward(self):
        return (self.curvature / 2 * (self.w - self.minimum) ** 2).sum()


def member(module, rate=0.1, optimiser=torch.optim.SGD, **asked):
    made = optimiser(module.parameters(), lr=rate)
    return made, learner_for(module, (), LocalTraining(made, **asked))


def train(module, optimiser, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        module().backward()
        optimiser.step()


# --- FedProx --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_fedprox_ends_between_the_merge_and_the_members_own_minimum(optimiser):
    module = Quadratic(minimum=5.0, curvature=2.0, begin=1.0)
    made, learner = member(module, 0.05, optimiser, prox=3.0)
    learner.begin_round()
    train(module, made, 800)
    # curvature * (w - 5) + prox * (w - 1) = 0
    assert torch.allclose(module.w, torch.full((2,), (2 * 5 + 3 * 1) / (2 + 3)), atol=1e-3)
    learner.load({"w": np.full(2, -4, np.float32)})
    learner.begin_round()
    train(module, made, 800)
    assert torch.allclose(module.w, torch.full((2,), (2 * 5 + 3 * -4) / (2 + 3)), atol=1e-3)


def test_fedprox_leaves_alone_what_stays_local():
    module = nn.ModuleDict({"own": Quadratic(5.0, 1.0), "shared": Quadratic(5.0, 1.0)})
    made = torch.optim.SGD(module.parameters(), lr=0.1)
    learner = learner_for(module, ("own.*",), LocalTraining(made, prox=1.0))
    learner.begin_round()
    train(lambda: module["own"]() + module["shared"](), made, 300)
    assert torch.allclose(module["own"].w, torch.tensor(5.0), atol=1e-4)
    assert torch.allclose(module["shared"].w, torch.tensor(2.5), atol=1e-4)


def test_a_scaled_gradient_gets_the_same_term_as_a_plain_one():
    ends = []
    for scaled in (False, True):
        module = Quadratic(5.0, 2.0, begin=1.0)
        made, learner = member(module, prox=3.0)
        learner.begin_round()
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**12)
        for _ in range(7):
            made.zero_grad()
            scaler.scale(module()).backward()
            scaler.step(made)
            scaler.update()
        ends.append(module.w.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=1e-6)
    assert not torch.allclose(ends[0], torch.tensor(5.0), atol=0.5)


def test_a_fused_optimiser_under_a_scaler_gets_the_term_in_its_own_scale():
    ends = []
    for fused in (False, True):
        module = Quadratic(5.0, 2.0, begin=1.0)
        made = torch.optim.SGD(module.parameters(), lr=0.1, fused=fused)
        learner = learner_for(module, (), LocalTraining(made, prox=3.0, scaffold=True))
        learner.begin_round()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        for step in range(8):
            made.zero_grad()
            scaler.scale(module()).backward()
            if step == 3:
                module.w.grad[0] = torch.inf  # this step overflows and must leave no trace
            scaler.step(made)
            scaler.update()
        ends.append({name: np.array(array) for name, array in learner.parameters().items()})
    assert np.allclose(ends[0]["w"], ends[1]["w"], rtol=1e-6)
    assert np.allclose(ends[0]["konsil.control/w"], ends[1]["konsil.control/w"], rtol=1e-6)
    assert np.isfinite(ends[0]["konsil.control/w"]).all()


def test_accumulated_gradients_get_the_term_once_a_step():
    ends = []
    for parts in (1, 4):
        module = Quadratic(5.0, 2.0, begin=1.0)
        made, learner = member(module, prox=3.0)
        learner.begin_round()
        for _ in range(5):
            made.zero_grad()
            for _ in range(parts):
                (module() / parts).backward()
            made.step()
        ends.append(module.w.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=1e-6)


def test_a_step_with_a_closure_gets_the_term_too():
    ends = []
    for closed in (False, True):
        module = Quadratic(5.0, 2.0, begin=1.0)
        made, learner = member(module, prox=3.0)
        learner.begin_round()

        def closure(module=module, made=made):
            made.zero_grad()
            loss = module()
            loss.backward()
            return loss

        for turn in range(6):
            if not closed:
                closure()
                made.step()
            elif turn % 2:
                assert made.step(closure).item() >= 0
            else:
                made.step(closure=closure)
        ends.append(module.w.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=1e-6)


def test_a_session_that_joins_again_does_not_add_the_term_twice_and_one_that_ended_adds_none():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made = torch.optim.SGD(module.parameters(), lr=0.1)
    learners = [learner_for(module, (), LocalTraining(made, prox=3.0)) for _ in range(3)]
    for learner in learners:
        learner.begin_round()
    assert len(made._optimizer_step_pre_hooks) == 1
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(13 / 5), atol=1e-4)
    learner.end()
    assert not made._optimizer_step_pre_hooks
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(5.0), atol=1e-4)

    learners.append(learner_for(module, (), LocalTraining(made, prox=3.0)))
    learners[-1].begin_round()
    assert made._optimizer_step_pre_hooks
    learners.clear()
    del learner
    gc.collect()
    assert not made._optimizer_step_pre_hooks, "a session that is forgotten holds on to nothing"


def test_a_session_that_cannot_join_takes_nothing_from_the_one_that_trains():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, training = member(module, prox=3.0)
    training.begin_round()
    refused = learner_for(module, (), LocalTraining(made, prox=3.0))
    refused.end()
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(13 / 5), atol=1e-4)


def test_a_session_that_ends_late_takes_nothing_from_the_one_after_it():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, first = member(module, prox=3.0)
    second = learner_for(module, (), LocalTraining(made, prox=3.0))
    for learner in (first, second):
        learner.begin_round()
    first.begin_round()  # only its first round brings a session to the optimiser
    first.end()
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(13 / 5), atol=1e-4)
    second.end()
    assert not made._optimizer_step_pre_hooks


def test_an_optimiser_in_the_coat_of_another_library_is_found():
    class Coat(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer  # as Accelerate does: without the base class's own beginning

    module = Quadratic(5.0, 2.0, begin=1.0)
    made = torch.optim.SGD(module.parameters(), lr=0.1)
    learner = learner_for(module, (), LocalTraining(Coat(made), prox=3.0))
    learner.begin_round()
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(13 / 5), atol=1e-4)


@pytest.mark.parametrize("asked", [{"prox": 3.0}, {"scaffold": True}, {"prox": 3.0, "scaffold": True}])
def test_training_that_goes_on_with_another_optimiser_is_steered_as_before(asked):
    ends = []
    for several in (False, True):
        module = Quadratic(5.0, 2.0, begin=1.0)
        used = [torch.optim.SGD(module.parameters(), lr=0.05) for _ in range(3)]
        learner = learner_for(module, (), LocalTraining(used[0], **asked))
        start([learner])
        for value in (1, 3):
            for optimiser in used:
                if several:
                    learner.go_on_with(optimiser)
                    learner.go_on_with(optimiser)
                    assert [len(each._optimizer_step_pre_hooks) for each in used] == [
                        int(each is optimiser) for each in used
                    ]
                train(module, optimiser if several else used[0], 2)
            handed = {name: np.array(array) for name, array in learner.parameters().items()}
            learner.load({name: np.full(2, value, np.float32) for name in handed})
            learner.begin_round()
        train(module, used[-1] if several else used[0], 2)
        ends.append(handed | {"end": module.w.detach().numpy().copy()})
        learner.end()
        assert not any(each._optimizer_step_pre_hooks for each in used)
    for name, array in ends[0].items():
        assert np.array_equal(array, ends[1][name]), name


def test_an_optimiser_that_is_reset_is_the_one_that_trains_now():
    module = Quadratic(5.0, 2.0)
    first, second = (torch.optim.Adam(module.parameters(), lr=0.1) for _ in range(2))
    learner = learner_for(module, (), LocalTraining(first, reset_optimizer=True))
    start([learner])
    learner.go_on_with(second)
    train(module, second, 3)
    assert second.state
    learner.begin_round()
    assert not second.state


def test_going_on_without_an_optimiser_where_one_is_needed_is_refused_and_changes_nothing():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, learner = member(module, prox=3.0)
    learner.begin_round()
    for other in (None, torch.optim.SGD(nn.Linear(2, 2).parameters())):
        with pytest.raises(ConfigError, match="optimiser"):
            learner.go_on_with(other)
    train(module, made, 500)
    assert torch.allclose(module.w, torch.tensor(13 / 5), atol=1e-4)


# --- SCAFFOLD -------------------------------------------------------------------------------------

HOSPITALS = ((0.0, 1.0), (10.0, 4.0))
"""Minimum and curvature of two hospitals' losses. That of their sum: (1 * 0 + 4 * 10) / (1 + 4) = 8."""
BOTH = 8.0
LOCAL_STEPS = 10


def swarm(rounds, **asked):
    modules = [Quadratic(*hospital) for hospital in HOSPITALS]
    members = [member(module, 0.05, **asked) for module in modules]
    start([learner for _, learner in members])
    for _ in range(rounds):
        for module, (made, _) in zip(modules, members, strict=True):
            train(module, made, LOCAL_STEPS)
        merged = merge([learner for _, learner in members])
    return merged


def test_scaffold_reaches_the_minimum_of_all_where_plain_averaging_stays_away_from_it():
    plain = float(swarm(150)["w"][0])
    corrected = swarm(150, scaffold=True)
    assert abs(plain - BOTH) > 0.5, plain
    assert np.allclose(corrected["w"], BOTH, atol=1e-4)
    assert np.allclose(corrected["konsil.control/w"], 0, atol=1e-3), "at the minimum gradients cancel out"


def test_scaffold_steps_are_those_of_the_papers_option_ii():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, learner = member(module, 0.1, scaffold=True)
    control = np.full(2, 0.5, np.float32)
    learner.load({"w": np.ones(2, np.float32), "konsil.control/w": np.zeros(2, np.float32)})
    learner.begin_round()
    train(module, made, 3)
    mine = np.array(learner.parameters()["konsil.control/w"])
    assert np.allclose(mine, (1 - module.w[0].item()) / (3 * 0.1)), "c_i+ = (x - y) / (K h) while c = c_i = 0"
    learner.load({"w": np.full(2, 3, np.float32), "konsil.control/w": control})
    learner.begin_round()
    train(module, made, 4)
    option_ii = mine - control + (3 - module.w.detach().numpy()) / (4 * 0.1)
    assert np.allclose(np.array(learner.parameters()["konsil.control/w"]), option_ii, rtol=1e-5)


def test_a_member_that_handed_nothing_over_keeps_its_control():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, learner = member(module, 0.1, scaffold=True)
    start([learner])
    train(module, made, 3)
    mine = np.array(learner.parameters()["konsil.control/w"])
    zero = {"w": np.zeros(2, np.float32), "konsil.control/w": np.zeros(2, np.float32)}
    learner.load(zero)
    learner.begin_round()
    train(module, made, 2)
    learner.load(zero)  # the round went on without it: what it trained since was never asked for
    learner.begin_round()
    assert np.array_equal(np.array(learner.parameters()["konsil.control/w"]), mine)


def test_a_member_that_comes_late_is_not_corrected_in_its_first_round():
    module = Quadratic(5.0, 2.0)
    made, learner = member(module, 0.1, scaffold=True)
    learner.load({"w": np.zeros(2, np.float32), "konsil.control/w": np.full(2, 9, np.float32)})
    learner.begin_round()
    train(module, made, 1)
    assert torch.allclose(module.w, torch.tensor(0.1 * 2 * 5))


def test_the_proposers_controls_begin_at_zero_and_are_float32_whatever_the_parameters_are():
    module = nn.Linear(3, 2, dtype=torch.bfloat16)
    made = torch.optim.SGD(module.parameters(), lr=0.1)
    learner = learner_for(module, ("bias",), LocalTraining(made, scaffold=True))
    arrays = learner.parameters()
    assert sorted(arrays) == ["konsil.control/weight", "weight"]
    assert not np.asarray(arrays["konsil.control/weight"]).any()
    kinds = {tensor.name: tensor.dtype for tensor in learner.schema().tensors}
    assert kinds == {"weight": "BF16", "konsil.control/weight": "F32"}
    learner.begin_round()
    module(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    made.step()
    assert np.all(np.asarray(learner.parameters()["konsil.control/weight"]) == 1)


def test_both_terms_together_are_their_sum():
    module = Quadratic(5.0, 2.0, begin=1.0)
    made, learner = member(module, 0.1, scaffold=True, prox=3.0)
    learner.load({"w": np.full(2, 1, np.float32), "konsil.control/w": np.zeros(2, np.float32)})
    learner.begin_round()
    train(module, made, 1)
    _ = learner.parameters()
    learner.load({"w": np.full(2, 1, np.float32), "konsil.control/w": np.full(2, 0.5, np.float32)})
    learner.begin_round()  # c_i is 2 * (1 - 5) = -8 from here on
    train(module, made, 2)
    w = 1.0
    for _ in range(2):
        w -= 0.1 * (2 * (w - 5) + (0.5 + 8) + 3 * (w - 1))
    assert torch.allclose(module.w, torch.tensor(w))


# --- what is asked and cannot be done -------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "what"),
    [({"prox": 0.1}, "FedProx"), ({"scaffold": True}, "`scaffold`"), ({"reset_optimizer": True}, "`reset_")],
)
def test_a_missing_optimiser_is_asked_for_by_the_very_call(asked, what):
    with pytest.raises(ConfigError, match=what) as caught:
        learner_for(nn.Linear(2, 1), (), LocalTraining(**asked))
    assert "konsil.join(study, model, optimizer=optimizer)" in str(caught.value)
    with pytest.raises(ConfigError, match=r"a dict, not a torch\.optim\.Optimizer"):
        learner_for(nn.Linear(2, 1), (), LocalTraining({}, **asked))


def test_an_optimiser_of_another_model_or_of_half_of_this_one_is_refused_by_name():
    module = nn.Linear(2, 1)
    before = torch.optim.SGD(copy.deepcopy(module).parameters(), lr=0.1)
    for asked in ({"prox": 0.1}, {"reset_optimizer": True}):
        with pytest.raises(
            ConfigError, match="lacks 2 of the 2 trained parameters that travel: bias, weight"
        ):
            learner_for(module, (), LocalTraining(before, **asked))
    half = torch.optim.SGD([module.weight], lr=0.1)
    with pytest.raises(ConfigError, match=r"lacks 1 of the 2 .*: bias.*freeze"):
        learner_for(module, (), LocalTraining(half, scaffold=True))
    learner_for(module, (), LocalTraining(half, reset_optimizer=True))
    module.bias.requires_grad_(False)
    learner_for(module, (), LocalTraining(half, scaffold=True))


def test_lbfgs_and_sparse_gradients_are_refused():
    module = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(ConfigError, match="L-BFGS"):
        learner_for(module, (), LocalTraining(torch.optim.LBFGS(module.parameters()), prox=1.0))
    made, learner = member(module, prox=1.0)
    learner.begin_round()
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="gradient of 'weight' is sparse"):
        made.step()


# --- the optimiser's state ------------------------------------------------------------------------


def optimisers():
    every = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    kinds = [kind for kind in every.values() if issubclass(kind, torch.optim.Optimizer)]
    return [kind for kind in kinds if kind is not torch.optim.Optimizer]


@pytest.mark.parametrize("kind", optimisers(), ids=lambda kind: kind.__name__)
def test_an_optimiser_that_is_reset_trains_as_a_new_one_and_else_goes_on(kind):
    def made(parameter):
        if kind is torch.optim.Adagrad:
            return kind([parameter], lr=0.1, initial_accumulator_value=0.5)
        return kind([parameter], lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    def step(parameter, optimiser):
        def closure():
            optimiser.zero_grad()
            loss = ((parameter - 3) ** 2).sum()
            loss.backward()
            if kind is torch.optim.SparseAdam:
                parameter.grad = parameter.grad.to_sparse()
            return loss

        optimiser.step(closure)

    ends = {}
    for reset in (False, True):
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(2, 2))
        optimiser = made(module.w)
        learner = learner_for(module, (), LocalTraining(optimiser, reset_optimizer=reset))
        start([learner])
        for _ in range(3):
            step(module.w, optimiser)
        learner.load({"w": np.zeros((2, 2), np.float32)})
        learner.begin_round()
        step(module.w, optimiser)
        ends[reset] = module.w.detach().clone()
    new = nn.Parameter(torch.zeros(2, 2))
    step(new, made(new))
    assert torch.equal(ends[True], new)
    if kind.__name__ not in {"ASGD", "Adafactor", "LBFGS", "Muon"}:  # one step shows nothing there
        assert not torch.equal(ends[False], new)


def test_adagrads_sums_are_at_their_beginning_after_a_reset_and_there():
    parameter = nn.Parameter(torch.ones(2))
    module = nn.Module()
    module.w = parameter
    optimiser = torch.optim.Adagrad([parameter], lr=0.1, initial_accumulator_value=0.5)
    learner = learner_for(module, (), LocalTraining(optimiser, reset_optimizer=True))
    (parameter**2).sum().backward()
    optimiser.step()
    learner.begin_round()
    assert torch.equal(optimiser.state[parameter]["sum"], torch.full((2,), 0.5))
    assert optimiser.state[parameter]["step"] == 0


# --- real training --------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
IMAGES = torch.from_numpy(RNG.normal(size=(256, 1, 8, 8)).astype(np.float32))
LABELS = (IMAGES.mean(dim=(1, 2, 3)) > 0).long()


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


def rounds(modules, step, local=(), count=6):
    """Members train on parts of their own and merge; the loss before and after, and the members' learners."""
    learners = [learner_for(module, local) for module in modules]
    start(learners)
    held = [torch.arange(place, len(IMAGES), len(modules)) for place in range(len(modules))]
    losses = []
    for number in range(count):
        for module, rows in zip(modules, held, strict=True):
            module.train()
            for batch in rows.split(32):
                loss = step(module, IMAGES[batch], LABELS[batch])
                losses.append((number, float(loss)))
        merge(learners)
    first = np.mean([loss for number, loss in losses if number == 0])
    last = np.mean([loss for number, loss in losses if number == count - 1])
    return first, last, learners


def plain_step(optimisers):
    def step(module, images, labels):
        optimiser = optimisers.setdefault(id(module), torch.optim.Adam(module.parameters(), lr=0.01))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def test_batchnorms_statistics_are_merged_or_stay_as_the_study_says():
    modules = [convolutional() for _ in range(2)]
    first, last, _ = rounds(modules, plain_step({}))
    assert last < 0.8 * first
    assert torch.equal(modules[0][1].running_mean, modules[1][1].running_mean)
    assert modules[0][1].num_batches_tracked == 24, "counted on, not merged"

    local = [convolutional() for _ in range(2)]
    rounds(local, plain_step({}), local=("1.*",))
    assert not torch.equal(local[0][1].running_mean, local[1][1].running_mean)
    assert not torch.equal(local[0][1].weight, local[1][1].weight)
    assert torch.equal(local[0][0].weight, local[1][0].weight)


def test_autocast_with_a_scaler_and_accumulation_trains_and_merges():
    optimisers, scalers = {}, {}

    def step(module, images, labels):
        optimiser = optimisers.setdefault(id(module), torch.optim.AdamW(module.parameters(), lr=0.01))
        scaler = scalers.setdefault(id(module), torch.amp.GradScaler("cpu"))
        optimiser.zero_grad()
        total = 0.0
        for part, wanted in zip(images.chunk(4), labels.chunk(4), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(module(part), wanted) / 4
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        scaler.step(optimiser)
        scaler.update()
        return total

    modules = [convolutional() for _ in range(2)]
    first, last, learners = rounds(modules, step)
    assert last < 0.8 * first
    assert {tensor.dtype for tensor in learners[0].schema().tensors} == {"F32"}
    assert torch.equal(modules[0][5].weight, modules[1][5].weight)


@pytest.mark.parametrize(("dtype", "code"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_models_of_half_precision_train_and_merge_in_it(dtype, code):
    def step(module, images, labels):
        loss = nn.functional.cross_entropy(module(images.to(dtype)).float(), labels)
        module.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(parameter.grad, alpha=0.05)
        return loss.detach()

    modules = [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).to(dtype) for _ in range(2)]
    first, last, learners = rounds(modules, step, count=12)
    assert last < 0.9 * first
    assert {tensor.dtype for tensor in learners[0].schema().tensors} == {code}
    assert torch.equal(modules[0][1].weight, modules[1][1].weight)


def test_a_compiled_model_sees_each_merge_and_is_not_compiled_again():
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    plain = [convolutional() for _ in range(2)]
    _, expected, _ = rounds(plain, plain_step({}))
    modules = [torch.compile(convolutional(), backend=backend, dynamic=False) for _ in range(2)]
    first, last, _ = rounds(modules, plain_step({}))
    assert last < 0.8 * first
    assert last == pytest.approx(expected, rel=1e-3)
    graphs = len(compilations)
    rounds(modules, plain_step({}), count=2)
    assert len(compilations) == graphs


@pytest.mark.timeout(400)  # a compiler is called
def test_a_model_compiled_to_machine_code_trains_and_merges(tmp_path, monkeypatch):
    if shutil.which("g++") is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("g++ is missing in CI")
        pytest.skip("NOT CHECKED: inductor needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    inner = [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2)]
    modules = [torch.compile(each) for each in inner]
    first, last, learners = rounds(modules, plain_step({}), count=4)
    assert last < 0.8 * first
    assert sorted(learners[0].parameters()) == ["1.bias", "1.weight"]
    assert torch.equal(inner[0][1].weight, inner[1][1].weight)
    with torch.no_grad():
        assert torch.allclose(modules[0](IMAGES[:8]), inner[1](IMAGES[:8]), atol=1e-5)
