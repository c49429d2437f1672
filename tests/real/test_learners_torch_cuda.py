"""PyTorch models on an accelerator: what they give, take, keep and train is what the CPU's do.

Each test runs on the CPU too, so that it is known to hold there; on CUDA wherever there is a device.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec

import numpy as np
import pytest

from konsil.core.merge import merge_chunk, rule
from konsil.core.parameters import Schema, views
from konsil.learners import LocalTraining, learner_for
from konsil.wall.layout import seal_arrays

if find_spec("torch") is None:
    if os.environ.get("CI", "").lower() == "true":
        raise ImportError("torch is missing in CI")
    pytest.skip("NOT CHECKED: torch is not installed", allow_module_level=True)

import torch
from torch import nn

pytestmark = pytest.mark.real


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no CUDA device")
    return request.param


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no CUDA device")
    return "cuda"


def sealed_bytes(learner):
    """What crosses the wall."""
    with seal_arrays(learner.schema(), learner.parameters()) as sealed:
        return bytes(sealed.data)


def load_bytes(learner, data):
    """What comes back over the wall: read-only views, of which none stays."""
    schema = learner.schema()
    with memoryview(data)[len(schema.header) :] as values:
        learner.load(views(schema, values))


def of_every_kind(dtypes=(torch.float64, torch.float32, torch.float16, torch.bfloat16)):
    """A module with each dtype, in several orders of memory; the same values at every call."""
    torch.manual_seed(3)
    found = {}
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        found[f"{kind}-plain"] = torch.randn(33, 7).to(dtype)
        found[f"{kind}-turned"] = torch.randn(5, 9).to(dtype).T
        found[f"{kind}-images"] = torch.randn(2, 3, 5, 4).to(dtype).to(memory_format=torch.channels_last)
        found[f"{kind}-every-second"] = torch.randn(6, 8).to(dtype)[:, ::2]
        found[f"{kind}-one"] = torch.randn(()).to(dtype)
        found[f"{kind}-none"] = torch.zeros(0, 3, dtype=dtype)
    return nn.ParameterDict({name: nn.Parameter(value) for name, value in found.items()})


def test_every_dtype_in_every_order_of_memory_travels_bit_for_bit(device):
    module = of_every_kind().to(device)
    learner = learner_for(module)
    given = sealed_bytes(learner)
    assert given == sealed_bytes(learner_for(of_every_kind())), "the same bytes as from the CPU"
    places = {name: each.data_ptr() for name, each in module.items()}
    with torch.no_grad():
        for each in module.values():
            each.zero_()
    load_bytes(learner, given)
    assert sealed_bytes(learner) == given
    assert {name: each.data_ptr() for name, each in module.items()} == places, "loaded in place"
    assert {each.device.type for each in module.values()} == {device}


def test_frozen_parts_on_a_device_are_those_on_the_cpu(device):
    def with_frozen_base():
        torch.manual_seed(5)
        base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        module = nn.Sequential(base.to(torch.bfloat16).requires_grad_(False), nn.Linear(4, 2))
        module.register_buffer("scale", torch.randn(3))
        return module

    there = learner_for(with_frozen_base().to(device)).schema()
    assert there.digest == learner_for(with_frozen_base()).schema().digest
    assert any(tensor.name.startswith("konsil.frozen:") for tensor in there.tensors)


def test_a_module_that_moves_to_a_device_after_it_joined_goes_on_travelling(device):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    learner = learner_for(module)
    before = sealed_bytes(learner)
    module.to(device)
    assert sealed_bytes(learner) == before
    with torch.no_grad():
        module[1].running_mean.fill_(7)
    load_bytes(learner, before)
    assert not module[1].running_mean.any()
    assert module[1].running_mean.device.type == device


def test_a_module_on_two_devices_travels_as_one(cuda):
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).to(cuda))
    learner = learner_for(module)
    given = sealed_bytes(learner)
    with torch.no_grad():
        for each in module.parameters():
            each.zero_()
    load_bytes(learner, given)
    assert sealed_bytes(learner) == given
    assert [each.device.type for each in module.parameters()] == ["cpu", "cpu", "cuda", "cuda"]


def test_a_merge_takes_no_memory_of_the_device(cuda):
    module = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))).to(cuda)
    learner = learner_for(module)
    data = sealed_bytes(learner)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    for _ in range(20):
        load_bytes(learner, data)
        data = sealed_bytes(learner)
    assert torch.cuda.memory_allocated() == held
    largest = max(each.nbytes for each in module.parameters())
    assert torch.cuda.max_memory_allocated() - held <= 2 * largest, "one tensor at a time, if any"


# --- training between merges ---------------------------------------------------------------------


def merged(learners):
    """The mean of what all hold, as the nodes make it on the CPU, loaded by all."""
    schema = learners[0].schema()
    chunks = [memoryview(sealed_bytes(each))[len(schema.header) :] for each in learners]
    out = bytearray(schema.data_bytes)
    merge_chunk(
        rule("mean", {}), schema.runs(0, schema.data_bytes), chunks, [1] * len(chunks), memoryview(out)
    )
    for learner in learners:
        learner.load(views(schema, memoryview(out).toreadonly()))
        learner.begin_round()


def trained(device, *, scaler=False, **asked):
    """Two members' values after three rounds of three steps on data of their own."""
    generator = torch.Generator().manual_seed(1)
    modules, optimisers, learners, rows = [], [], [], []
    for _ in range(2):
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double().to(device)
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.05, fused=scaler)
        modules.append(module)
        optimisers.append(optimiser)
        learners.append(learner_for(module, (), LocalTraining(optimiser, **asked)))
        rows.append(torch.randn(3, 16, 4, generator=generator, dtype=torch.float64).to(device))
    grown = [torch.amp.GradScaler(device, init_scale=2.0**8) for _ in modules]
    merged(learners)
    for _ in range(3):
        for module, optimiser, batches, grow in zip(modules, optimisers, rows, grown, strict=True):
            for batch in batches:
                optimiser.zero_grad()
                loss = (module(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
                if scaler:
                    grow.scale(loss).backward()
                    grow.step(optimiser)
                    grow.update()
                else:
                    loss.backward()
                    optimiser.step()
        merged(learners)
    held = [np.concatenate([p.detach().cpu().numpy().ravel() for p in m.parameters()]) for m in modules]
    assert np.array_equal(*held), "after a merge all hold the same"
    return held[0]


@pytest.mark.parametrize(
    "asked",
    [{}, {"prox": 0.3}, {"scaffold": True}, {"prox": 0.3, "scaffold": True}, {"reset_optimizer": True}],
    ids=str,
)
def test_steered_training_on_a_device_is_that_on_the_cpu(device, asked):
    expected = trained("cpu", **asked)
    assert np.abs(expected - trained("cpu")).max() > 1e-6 or not asked, "what is asked makes a difference"
    # Control variates are float32, and sums of them are made in another order.
    far = 1e-6 if "scaffold" in asked else 1e-9
    np.testing.assert_allclose(trained(device, **asked), expected, rtol=far, atol=far / 1000)


def test_a_fused_optimiser_under_a_scaler_is_steered_alike(device):
    np.testing.assert_allclose(
        trained(device, scaler=True, prox=0.3, scaffold=True),
        trained("cpu", prox=0.3, scaffold=True),
        rtol=1e-6,
        atol=1e-9,
    )


def test_autocast_with_a_scaler_and_accumulation_trains_and_merges(device):
    low = torch.bfloat16 if device == "cpu" else torch.float16
    torch.manual_seed(0)
    rows = torch.randn(2, 4, 32, 8, device=device)
    modules = []
    for _ in range(2):
        torch.manual_seed(1)
        modules.append(
            nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)).to(device)
        )
    optimisers = [torch.optim.AdamW(module.parameters(), lr=0.02) for module in modules]
    scalers = [torch.amp.GradScaler(device) for _ in modules]
    learners = [
        learner_for(module, (), LocalTraining(optimiser, prox=0.01))
        for module, optimiser in zip(modules, optimisers, strict=True)
    ]
    merged(learners)
    losses = []
    for _ in range(8):
        for module, optimiser, scaler, parts in zip(modules, optimisers, scalers, rows, strict=True):
            optimiser.zero_grad()
            for part in parts:
                with torch.autocast(device, low):
                    loss = (module(part) - part.sum(dim=1, keepdim=True)).square().mean() / len(parts)
                scaler.scale(loss).backward()
                losses.append(float(loss.detach()))
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            scaler.step(optimiser)
            scaler.update()
        merged(learners)
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    assert {tensor.dtype for tensor in learners[0].schema().tensors} == {"F32"}
    assert sealed_bytes(learners[0]) == sealed_bytes(learners[1])


@pytest.mark.timeout(400)  # a compiler is called
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_and_one_in_a_recorded_graph_see_each_merge(cuda, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).to(cuda)
    learner = learner_for(torch.compile(inner, mode=mode))
    compiled = torch.compile(inner, mode=mode)
    rows = torch.randn(16, 64, device=cuda)
    with torch.no_grad():
        for _ in range(3):  # a graph is recorded at the second or third call
            compiled(rows).clone()
    other = copy.deepcopy(inner)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(-0.5)
    load_bytes(learner, sealed_bytes(learner_for(other)))
    with torch.no_grad():
        assert torch.allclose(compiled(rows).clone(), other(rows), atol=1e-3)


# --- starting again, and trying out --------------------------------------------------------------

OPTIMISERS = {
    "Adam": {},
    "AdamW": {"amsgrad": True},
    "AdamW fused": {"fused": True},
    "Adam capturable": {"capturable": True},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9},
    "Adagrad": {},
    "Adafactor": {},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_training_that_starts_again_goes_on_bit_for_bit(device, kind, dtype):
    if device == "cpu" and "capturable" in kind:
        pytest.skip("only accelerators have it")
    torch.manual_seed(4)
    rows = torch.randn(8, 6, dtype=dtype).to(device)

    def begun():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(device, dtype)
        optimiser = getattr(torch.optim, kind.split()[0])(module.parameters(), lr=0.05, **OPTIMISERS[kind])
        return module, optimiser, learner_for(module, ("1.*",), LocalTraining(optimiser))

    def step(module, optimiser):
        optimiser.zero_grad()
        module(rows).float().square().sum().backward()
        optimiser.step()

    module, optimiser, learner = begun()
    for _ in range(3):
        step(module, optimiser)
    state = {name: np.array(array) for name, array in learner.local_state().items()}
    again, its, resumed = begun()
    load_bytes(resumed, sealed_bytes(learner))
    resumed.load_local_state(state)
    for _ in range(2):
        step(module, optimiser)
        step(again, its)
    for mine, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
        assert other.device.type == device


def test_a_model_that_was_tried_out_is_put_back_bit_for_bit(device):
    module = of_every_kind().to(device)
    learner = learner_for(module).learner
    before = sealed_bytes(learner_for(module))
    kept = learner.snapshot()
    with torch.no_grad():
        for each in module.values():
            each.fill_(1)
    learner.restore(kept)
    assert sealed_bytes(learner_for(module)) == before
    assert isinstance(learner_for(module).schema(), Schema)
