"""Every layer under every tool of PyTorch: as torch.nn's under the same, or refused by name."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import normkit as nk
from normkit.compat import release

X = torch.randn(3, 4, 3, 3, dtype=torch.float64)


def frozen(layer: nn.Module) -> nn.Module:
    nk.freeze(layer, affine=False)
    return layer


def accelerated(*layers: nn.Module) -> nn.Module:
    model = nn.Sequential(*layers)
    nk.accelerate(model)
    return model


# A layer, and the same of torch.nn alone.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "batch": (lambda: nk.BatchNorm2d(4), lambda: nn.BatchNorm2d(4)),
    "batch, evaluation": (lambda: nk.BatchNorm2d(4).eval(), lambda: nn.BatchNorm2d(4).eval()),
    "act": (
        lambda: nk.BatchNorm2d(4, act="gelu"),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GELU()),
    ),
    "accelerated": (
        lambda: accelerated(nn.BatchNorm2d(4), nn.ReLU()),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    ),
    "accelerated and frozen": (
        lambda: accelerated(frozen(nn.BatchNorm2d(4)), nn.ReLU()),
        lambda: nn.Sequential(nn.BatchNorm2d(4).eval(), nn.ReLU()),
    ),
    "frozen": (lambda: frozen(nk.BatchNorm2d(4)), lambda: nn.BatchNorm2d(4).eval()),
    "frozen, of torch.nn": (lambda: frozen(nn.BatchNorm2d(4)), lambda: nn.BatchNorm2d(4).eval()),
    "one ghost": (lambda: nk.GhostBatchNorm2d(4, 3), lambda: nn.BatchNorm2d(4)),
    "no correction": (
        lambda: nk.BatchRenorm2d(4, momentum=0.1, r_max=1.0, d_max=0.0),
        lambda: nn.BatchNorm2d(4),
    ),
    "sync": (lambda: nk.SyncBatchNorm(4), lambda: nn.BatchNorm2d(4)),
    "instance": (
        lambda: nk.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
    "group": (lambda: nk.GroupNorm(2, 4), lambda: nn.GroupNorm(2, 4)),
    "layer": (lambda: nk.LayerNorm((3, 3)), lambda: nn.LayerNorm((3, 3))),
    "rms": (lambda: nk.RMSNorm(3, eps=1e-5), lambda: nn.RMSNorm(3, eps=1e-5)),
}


class Subclass(Tensor):
    """A tensor that only has another type."""


class Wrapper(Tensor):
    """A tensor around another one, which sees the operations below autograd."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


class Names(TorchFunctionMode):
    def __init__(self) -> None:
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def variable() -> Tensor:
    return X.clone().requires_grad_()


def parameters(m: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in m.named_parameters()}


def gradients(m: nn.Module, x: Tensor, y: Tensor) -> list[Any]:
    y.pow(3).sum().backward()
    return [y, x.grad, *(p.grad for p in m.parameters())]


def function_mode(m: nn.Module) -> list[Any]:
    with Names() as mode:
        y = m(X)
    own_step = any(isinstance(k, (nk.GhostBatchNorm2d, nk.BatchRenorm2d)) for k in m.modules())
    assert own_step or any(n.endswith("_norm") for n in mode.names), mode.names
    return [y]


def dispatch_mode(m: nn.Module) -> list[Any]:
    with Operations() as mode:
        y = m(X)
    assert mode.count
    return [y]


def flop_counter(m: nn.Module) -> list[Any]:
    with FlopCounterMode(display=False) as mode:
        y = m(X)
    return [y, mode.get_total_flops()]


def graph(m: nn.Module) -> list[Any]:
    made = make_fx(lambda state, x: functional_call(m, state, (x,)))(m.state_dict(), X)
    return [made({k: v.clone() for k, v in m.state_dict().items()}, X + 1)]


def fake(m: nn.Module) -> list[Any]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = m(mode.from_tensor(X))
    return [tuple(y.shape), isinstance(y, FakeTensor)]


def over_an_ensemble(m: nn.Module) -> list[Any]:
    params, buffers = stack_module_state([m, copy.deepcopy(m)])
    y = vmap(lambda p, b: functional_call(m, (p, b), (X,)))(params, buffers)
    return [y, *buffers.values()]


def batched_gradient(m: nn.Module) -> list[Any]:
    x = variable()
    y = m(x)
    return list(torch.autograd.grad(y, x, torch.stack([y.detach(), y.exp().detach()]),
                                    is_grads_batched=True))  # fmt: skip


def expanded_weights(m: nn.Module) -> list[Any]:
    y = call_for_per_sample_grads(m, batch_size=len(X), loss_reduction="sum")(X)
    y.pow(3).sum().backward()
    return [p.grad_sample for p in m.parameters()]  # type: ignore[attr-defined]


def averaged(m: nn.Module) -> list[Any]:
    average = AveragedModel(m, use_buffers=True)
    for shift in range(3):
        m(X + shift)
        average.update_parameters(m)
    return [average.eval()(X)]


def pruned(m: nn.Module) -> list[Any]:
    layer = next((k for k in m.modules() if k._parameters.get("weight") is not None), None)
    if layer is None:
        return [m(X)]
    prune.l1_unstructured(layer, "weight", 1)
    y = m(X)
    prune.remove(layer, "weight")
    return [y, m(X)]


def emptied(m: nn.Module) -> list[Any]:
    state = copy.deepcopy(m.state_dict())
    m = m.to("meta").to_empty(device="cpu")
    m.load_state_dict(state)
    return [m(X)]


def assigned(m: nn.Module) -> list[Any]:
    state = {name: value.clone() + 1 for name, value in m.state_dict().items()}
    m = m.to("meta")
    m.load_state_dict(state, assign=True)
    y = m(X)
    same = [v.data_ptr() == state[k].data_ptr() for k, v in m.state_dict().items()]
    return [y, same, *m.state_dict().values()]


def swapped(m: nn.Module) -> list[Any]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return [m.float()(X.float())]
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def inference_then_training(m: nn.Module) -> list[Any]:
    with torch.inference_mode():
        m(X)
    x = variable()
    return gradients(m, x, m(x))


def default_device(m: nn.Module) -> list[Any]:
    with torch.device("meta"):
        return [m(X)]


def hooked(m: nn.Module) -> list[Any]:
    seen: list[Any] = []
    m.register_full_backward_hook(lambda _, into, out: seen.append(into[0]))
    x = variable()
    return gradients(m, x, m(x)) + seen


def packed(m: nn.Module) -> list[Any]:
    x = variable()
    with torch.autograd.graph.save_on_cpu():
        y = m(x)
    return gradients(m, x, y)


def recomputed(m: nn.Module) -> list[Any]:
    x = variable()
    return gradients(m, x, checkpoint(m, x, use_reentrant=False))


def buffers_of_the_new_kind(m: nn.Module) -> list[Any]:
    for layer in m.modules():
        for name, value in list(layer._buffers.items()):
            if value is not None:
                setattr(layer, name, nn.Buffer(value.clone()))
    return [m(X), *m.state_dict().values()]


def weights_computed(m: nn.Module) -> list[Any]:
    values = {name: (p * 2).requires_grad_() for name, p in parameters(m).items()}
    y = functional_call(m, values, (X,))
    return list(torch.autograd.grad(y.pow(3).sum(), list(values.values())))


def shared_memory(m: nn.Module) -> list[Any]:
    m.share_memory()
    return [m(X), all(t.is_shared() for t in m.state_dict().values())]


def saved(m: nn.Module) -> list[Any]:
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    return [torch.load(file, weights_only=False)(X)]


def distributed_tensor(m: nn.Module, placement: Any) -> list[Any]:
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    y = distribute_module(m, mesh)(distribute_tensor(X, mesh, [placement]))
    return [y.full_tensor()]


def in_parallel(m: nn.Module) -> list[Any]:
    m = nn.parallel.DistributedDataParallel(m)
    return [copy.deepcopy(m)(X), m(X)]


def fully_sharded(m: nn.Module) -> list[Any]:
    model = nn.Sequential(m)
    dist.fsdp.fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    y = model(variable())
    y.pow(3).sum().backward()
    return [y, *(p.grad.full_tensor() for p in model.parameters())]


TOOLS: dict[str, Callable[[nn.Module], list[Any]]] = {
    f.__name__: f
    for f in (
        function_mode, dispatch_mode, flop_counter, graph, fake, over_an_ensemble, batched_gradient,
        expanded_weights, averaged, pruned, emptied, assigned, swapped, inference_then_training,
        default_device, hooked, packed, recomputed, buffers_of_the_new_kind, weights_computed,
        shared_memory, saved,
    )
}  # fmt: skip
TOOLS |= {
    "subclass": lambda m: [m(X.as_subclass(Subclass))],
    "wrapper": lambda m: [m(Wrapper(X)).inner],
    "meta": lambda m: [tuple(m.to("meta")(X.to("meta")).shape)],
    "functional_call": lambda m: [
        functional_call(m, {k: v + 1 for k, v in parameters(m).items()}, (X,))
    ],
    "jacrev": lambda m: [jacrev(lambda x: m(x).sum((2, 3)))(X)],
    "jacfwd": lambda m: [jacfwd(lambda x: m(x).sum((2, 3)))(X)],
    "hessian": lambda m: [hessian(lambda x: m(x).pow(3).sum())(X)],
    "jvp": lambda m: list(jvp(m, (X,), (X.flip(0),))),
    "second gradient": lambda m: [grad(lambda x: grad(lambda x: m(x).pow(3).sum())(x).sum())(X)],
    "vmap": lambda m: [vmap(m)(torch.stack([X, X.exp()]))],
    "gradcheck": lambda m: [
        torch.autograd.gradcheck(m, (X[:2].clone().requires_grad_(),), fast_mode=True)
    ],
    "fx": lambda m: [torch.fx.symbolic_trace(nn.Sequential(m))(X)],
}
WITH_PROCESSES: dict[str, Callable[[nn.Module], list[Any]]] = {
    "replicated": lambda m: distributed_tensor(m, Replicate()),
    "sharded": lambda m: distributed_tensor(m, Shard(0)),
    "in_parallel": in_parallel,
    "fully_sharded": fully_sharded,
}


def compared(tool: Callable[[nn.Module], list[Any]]) -> None:
    for name, (ours, theirs) in LAYERS.items():
        try:
            expected = tool(theirs().double())
        except NotImplementedError as error:
            # Which operations take distributed tensors differs between releases of torch.
            assert "sharding strategy" in str(error)
            try:
                found = tool(ours().double())
            except NotImplementedError as lacking:
                assert "sharding strategy" in str(lacking)
            else:
                torch.testing.assert_close(found, [theirs().double()(X)])
            continue
        except Exception:
            with pytest.raises(Exception):  # noqa: B017
                tool(ours().double())
            continue
        found = tool(ours().double())
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("tool", TOOLS)
def test_as_torch(tool: str) -> None:
    compared(TOOLS[tool])


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("tool", WITH_PROCESSES)
def test_as_torch_with_processes(tool: str) -> None:
    if tool == "sharded" and release(torch.__version__) < (2, 8):
        pytest.skip("Gloo has no average before torch 2.8, and DTensor asks for one")
    compared(WITH_PROCESSES[tool])
