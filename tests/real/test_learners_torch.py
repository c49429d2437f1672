"""PyTorch modules: what of them travels, what must be the same everywhere, how often a tensor is copied."""

from __future__ import annotations

import os
import weakref
from importlib.util import find_spec

import numpy as np
import pytest

from konsil.core.parameters import FROZEN, Schema, views
from konsil.errors import ConfigError, SchemaMismatch
from konsil.learners import learner_for
from konsil.wall.layout import read_arrays, seal_arrays

if any(find_spec(name) is None for name in ("torch", "transformers", "peft")):
    if os.environ.get("CI", "").lower() == "true":
        raise ImportError("torch, transformers or peft is missing in CI")
    pytest.skip("NOT CHECKED: torch, transformers or peft is not installed", allow_module_level=True)

import torch
from torch import nn
from torch.utils._pytree import tree_map

pytestmark = pytest.mark.real


def names(learner):
    return [name for name in learner.parameters() if not name.startswith(FROZEN)]


def marker(learner):
    return [name for name in learner.parameters() if name.startswith(FROZEN)]


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def frozen_up_to(layers, seed=1, head_seed=7):
    """A network whose first layers are frozen; the head is always another member's own."""
    module = network(seed)
    for layer in module[:layers]:
        layer.requires_grad_(False)
    torch.manual_seed(head_seed)
    module[2].reset_parameters()
    return module


# --- what travels ---------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_so_do_the_buffers_of_frozen_modules():
    assert names(learner_for(frozen_up_to(1))) == [
        *("1.bias", "1.running_mean", "1.running_var", "1.weight", "2.bias", "2.weight")
    ]
    assert names(learner_for(frozen_up_to(2))) == ["2.bias", "2.weight"]
    half = network()
    half[1].weight.requires_grad_(False)
    assert "1.running_mean" in names(learner_for(half))


def test_the_buffers_of_a_module_without_parameters_travel():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)).requires_grad_(False)
    module.append(nn.Linear(3, 1))
    assert names(learner_for(module)) == ["1.running_mean", "1.running_var", "2.bias", "2.weight"]


def test_what_travels_is_settled_when_the_learner_is_made():
    module = frozen_up_to(2)
    learner = learner_for(module)
    before = learner.schema()
    module.requires_grad_(True)
    assert learner.schema() == before
    module.requires_grad_(False)
    assert learner.schema() == before
    module.to(torch.float32).train()
    module(torch.ones(4, 4))  # a frozen BatchNorm goes on counting here
    assert learner.schema() == before


def test_buffers_that_a_moved_module_has_made_anew_are_found_again():
    module = network()
    learner = learner_for(module)
    module[1].running_mean = torch.full((3,), 5.0)
    assert np.all(learner.parameters()["1.running_mean"] == 5)
    learner.load({"1.running_mean": np.full(3, 2, np.float32)})
    assert torch.equal(module[1].running_mean, torch.full((3,), 2.0))


def test_a_model_of_which_all_is_frozen_is_refused():
    with pytest.raises(ConfigError, match=r"All of the model's parameters are frozen.*Unfreeze"):
        learner_for(network().requires_grad_(False))


def test_tied_tensors_travel_once_under_one_name_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            for name in (first, second):
                setattr(self, name, nn.Linear(3, 3, bias=False))
            getattr(self, second).weight = getattr(self, first).weight

    for order in (("embedding", "head"), ("head", "embedding")):
        module = Tied(*order)
        learner = learner_for(module)
        assert names(learner) == ["embedding.weight"]
        learner.load({"embedding.weight": np.full((3, 3), 4, np.float32)})
        assert module.head.weight is module.embedding.weight
        assert torch.equal(module.head.weight, torch.full((3, 3), 4.0))
    with pytest.raises(ConfigError, match="None of the model's"):
        learner_for(Tied("embedding", "head"), local=("head.*",)).parameters()


def test_parameters_that_share_one_memory_travel_once():
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight.data = module["a"].weight.data
    module["a"].weight.requires_grad_(False)  # one of the two is trained, so the memory they share travels
    learner = learner_for(module)
    assert names(learner) == ["b.weight"]
    assert not marker(learner)
    learner.load({"b.weight": np.ones((2, 2), np.float32)})
    assert torch.equal(module["a"].weight, torch.ones(2, 2))


def test_wrapped_and_compiled_modules_have_the_names_of_the_module_inside():
    module = network()
    plain = learner_for(module).schema()
    compiled = torch.compile(module, backend="eager")
    assert learner_for(compiled).schema() == plain
    assert learner_for(nn.DataParallel(compiled)).schema() == plain
    assert learner_for(torch.compile(nn.DataParallel(module), backend="eager")).schema() == plain
    module[2] = torch.compile(module[2], backend="eager")
    assert learner_for(module).schema() == plain


# --- what must be the same everywhere -------------------------------------------------------------


def test_the_same_frozen_parts_are_one_schema_and_others_are_another():
    mine, same = learner_for(frozen_up_to(2)), learner_for(frozen_up_to(2, head_seed=8))
    assert len(marker(mine)) == 1
    assert mine.schema() == same.schema()
    other = learner_for(frozen_up_to(2, seed=2))
    assert mine.schema() != other.schema()
    (found,) = mine.schema().differences(other.schema())
    assert found == (
        "The frozen parts of the model differ: they do not travel, so every member must load the same ones, "
        "and freeze the same ones, before it joins."
    )
    with pytest.raises(SchemaMismatch, match="The frozen parts of the model differ") as caught:
        mine.schema().require_same(other.schema())
    assert "konsil.frozen" not in str(caught.value)


def test_one_bit_of_a_frozen_buffer_or_another_dtype_is_another_base():
    module = frozen_up_to(2)
    before = learner_for(module).schema()
    module[1].running_var[0] += 2**-20
    assert learner_for(module).schema() != before
    module[1].running_var[0] = 1
    assert learner_for(module).schema() == before
    module[0].to(torch.float64)
    assert learner_for(module).schema() != before


def test_frozen_parts_that_the_study_keeps_local_may_differ():
    local = ("0.*",)
    schemas = {learner_for(frozen_up_to(1, seed), local).schema().digest for seed in (1, 2)}
    assert len(schemas) == 1
    assert not marker(learner_for(frozen_up_to(1), local))


def test_a_difference_in_frozen_parts_is_said_before_all_others():
    study, mine = frozen_up_to(2), frozen_up_to(1, seed=3)
    found = learner_for(study).schema().differences(learner_for(mine).schema())
    assert found[0].startswith("The frozen parts of the model differ")
    assert "'1.weight' is not expected." in found


def test_integer_and_low_precision_parameters_of_a_frozen_base_count_but_its_counters_do_not():
    def quantised(value):
        base = nn.Module()
        base.register_parameter("q", nn.Parameter(torch.full((3,), value, dtype=torch.int8), False))
        base.register_parameter("f", nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), False))
        return nn.ModuleDict({"base": base, "head": nn.Linear(2, 1)})

    assert learner_for(quantised(1)).schema() == learner_for(quantised(1)).schema()
    assert learner_for(quantised(1)).schema() != learner_for(quantised(2)).schema()
    module = frozen_up_to(2)
    before = learner_for(module).schema()
    module[1].num_batches_tracked += 1
    assert learner_for(module).schema() == before


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # between the two libraries
def test_only_the_adapters_of_a_language_model_travel():
    import peft  # noqa: PLC0415 - slow to import, and for this test only
    import transformers  # noqa: PLC0415 - as above

    def adapted(base_seed):
        torch.manual_seed(base_seed)
        settings = transformers.GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        base = transformers.GPT2LMHeadModel(settings)
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        return peft.get_peft_model(base, lora)

    module = adapted(1)
    learner = learner_for(module)
    assert names(learner)
    assert all("lora_" in name for name in names(learner))
    travelling = sum(array.size for array in learner.parameters().values())
    assert travelling < sum(each.numel() for each in module.parameters()) / 20
    assert learner.schema() == learner_for(adapted(1)).schema()
    assert learner.schema() != learner_for(adapted(2)).schema()

    before = {name: array.copy() for name, array in learner.parameters().items()}
    base = module.base_model.model.transformer.wte.weight.detach().clone()
    tokens = torch.arange(12).reshape(2, 6)
    optimiser = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's second matrix begins at zero, so the first moves from the second step on
        optimiser.zero_grad()
        module(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
    after = learner.parameters()
    assert all(np.any(after[name] != before[name]) for name in names(learner))
    learner.load(before)
    assert all(np.array_equal(learner.parameters()[name], before[name]) for name in before)
    assert torch.equal(module.base_model.model.transformer.wte.weight, base)


# --- copies ---------------------------------------------------------------------------------------


class Far(torch.Tensor):
    """A tensor that is not on the CPU, on a machine without an accelerator: it counts what is copied."""

    out, into, alive, most_alive = 0, 0, 0, 0

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="lazy")

    def __init__(self, inner):
        self.inner = inner.detach()

    @classmethod
    def begin(cls):
        Far.out = Far.into = Far.alive = Far.most_alive = 0

    @classmethod
    def gone(cls):
        Far.alive -= 1

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def near(value):
            return value.inner if isinstance(value, Far) else value

        if func is torch.ops.aten._to_copy.default:
            assert str(kwargs["device"]) == "cpu"
            copied = args[0].inner.contiguous().clone()
            Far.out += 1
            Far.alive += 1
            Far.most_alive = max(Far.most_alive, Far.alive)
            weakref.finalize(copied.untyped_storage(), Far.gone)
            return copied
        if func is torch.ops.aten.copy_.default:
            assert not isinstance(args[1], Far)
            Far.into += 1
            args[0].inner.copy_(args[1])
            return args[0]
        assert func in {torch.ops.aten.detach.default, torch.ops.aten.view.dtype}, func
        made = func(*tree_map(near, args), **tree_map(near, kwargs or {}))
        return Far(made)


def far_network(layers, dtype=torch.float32):
    module = nn.Sequential(*(nn.Linear(600, 600) for _ in range(layers)))  # 1.4 MB each
    for layer in module:
        layer.weight = nn.Parameter(Far(layer.weight.detach().to(dtype)))
        layer.bias = nn.Parameter(Far(layer.bias.detach().to(dtype)))
    return module


def test_a_tensor_elsewhere_is_copied_out_once_and_in_once_a_merge_and_none_is_kept():
    module = far_network(4)
    learner = learner_for(module)
    schema = learner.schema()
    Far.begin()
    learner.schema()
    assert Far.out == 0, "names, dtypes and shapes need no values"
    sealed = seal_arrays(schema, learner.parameters())
    assert Far.out == 8, "one copy a tensor"
    assert Far.alive == 0, "none is kept"
    # Small tensors wait for the next large one, so that they are written together: at most 1 MiB of them.
    assert Far.most_alive <= 2, f"{Far.most_alive} copies at a time"
    _, data = read_arrays(sealed, schema)
    expected = {name: tensor.inner.clone() for name, tensor in module.state_dict(keep_vars=True).items()}
    for each in module.parameters():
        each.inner.zero_()
    values = views(schema, data)
    learner.load(values)
    assert Far.into == 8
    assert Far.out == 8
    assert all(torch.equal(each.inner, expected[name]) for name, each in module.named_parameters())
    del values, data
    sealed.close()


def test_large_tensors_elsewhere_are_on_the_host_one_at_a_time():
    module = nn.ParameterList(nn.Parameter(Far(torch.ones(300_000))) for _ in range(6))  # 1.2 MB each
    learner = learner_for(module)
    Far.begin()
    seal_arrays(learner.schema(), learner.parameters()).close()
    assert (Far.out, Far.most_alive, Far.alive) == (6, 1, 0)


def test_half_precision_elsewhere_travels_as_its_bits():
    module = far_network(1, torch.bfloat16)
    learner = learner_for(module)
    assert {tensor.dtype for tensor in learner.schema().tensors} == {"BF16"}
    bits = np.asarray(learner.parameters()["0.bias"])
    assert torch.equal(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), module[0].bias.inner)


def test_a_module_on_the_cpu_is_not_copied_to_be_read_and_autograd_sees_what_is_loaded():
    module = nn.Linear(3, 2)
    learner = learner_for(module)
    assert np.shares_memory(learner.parameters()["weight"], module.weight.detach().numpy())
    loss = (module.weight**2).sum()
    learner.load({"weight": np.zeros((2, 3), np.float32)})
    assert module.weight.requires_grad
    assert not module.weight.detach().any()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # of values that are no more


def test_tensors_in_any_order_of_memory_travel():
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    learner = learner_for(module)
    schema = learner.schema()
    expected = module.weight.detach().clone()
    sealed = seal_arrays(schema, learner.parameters())
    with torch.no_grad():
        module.weight.zero_()
    values = views(schema, read_arrays(sealed, schema)[1])
    learner.load(values)
    assert torch.equal(module.weight, expected)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    del values
    sealed.close()


# --- what cannot be used --------------------------------------------------------------------------


def of_inference():
    with torch.inference_mode():
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"'0\.(bias|weight)' has no shape yet.*one batch"),
        (lambda: nn.Sequential(nn.LazyBatchNorm1d()), "has no shape yet.*one batch"),
        (lambda: nn.Linear(2, 2, device="meta"), "meta device.*load_state_dict"),
        (of_inference, "inference_mode.*Build the model outside"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "is complex64, which cannot be merged.*`local`"),
    ],
)
def test_a_module_that_cannot_be_merged_is_refused_by_the_tensors_name(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        learner_for(make())


def test_a_parameter_that_cannot_be_merged_may_stay_local():
    module = nn.ModuleDict({"phase": nn.Linear(2, 2, dtype=torch.complex64), "head": nn.Linear(2, 2)})
    assert names(learner_for(module, ("phase.*",))) == ["head.bias", "head.weight"]


def test_the_schema_of_a_module_that_was_never_frozen_is_as_before():
    module = network()
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    assert learner_for(module).schema() == Schema.of({name: each.numpy() for name, each in state.items()})
