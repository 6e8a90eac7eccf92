"""Steps of entropy minimization, within the forward of a model."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from normkit.adaptation.entropy import Logits, are_probabilities, logits_of, mean_entropy
from normkit.errors import OptionError, StatisticsError, message
from normkit.handle import Skipped, Step
from normkit.statistics.layers.preserve import overwrite

__all__ = ["EntropyMinimizer", "minimize_in"]

# The subclass of each class whose forward makes a step, made once.
_MINIMIZING: dict[type[nn.Module], type[nn.Module]] = {}


class EntropyMinimizer:
    """Optimizer of γ and β by the entropy of each batch's predictions.

    Args:
        parameters: γ and β.
        make: function that makes the optimizer.
        logits: function of the output, or None.

    Attributes:
        steps: updates since the start or the last reset.
        entropy: of the last batch, in nats; None before the first.
        unreached: number of γ and β that the last batch gave no gradient.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        make: Callable[[list[Parameter]], torch.optim.Optimizer],
        logits: Logits | None,
    ) -> None:
        self._parameters, self._make, self._logits = parameters, make, logits
        self._start = [p.detach().clone() for p in parameters]
        # Steps of lr=1e-3, and Adam's ε of 1e-8, are lost in half types.
        self._trained = [
            p if p.element_size() > 2 else Parameter(p.detach().float()) for p in parameters
        ]
        self._optimizer = self._new()
        self._checked = False
        self._lock = threading.RLock()
        # Within a compiled model a step runs eagerly. Importing the compiler takes seconds.
        compiled = "torch._dynamo" in sys.modules
        self.run = torch.compiler.disable(self._run) if compiled else self._run
        self.steps = self.unreached = 0
        self.entropy: float | None = None

    def reset(self) -> None:
        """Return γ, β and the optimizer to their start."""
        for parameter, values in zip(self._parameters, self._start, strict=True):
            overwrite(parameter.detach(), values.to(parameter.device))
        for trained, values in zip(self._trained, self._start, strict=True):
            overwrite(trained.detach(), values.to(trained.device))
        self._optimizer = self._new()
        self.steps, self.entropy = 0, None

    def _new(self) -> torch.optim.Optimizer:
        optimizer: Any = self._make(list(self._trained))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise OptionError(
                message(
                    "optimizer as a function that returns a torch.optim.Optimizer",
                    f"one that returns a {type(optimizer).__name__}",
                    "pass optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
                )
            )
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise OptionError(
                message(
                    "an optimizer that makes a step of one gradient",
                    f"{type(optimizer).__name__}, which calls the model again for each step",
                    "pass optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
                )
            )
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in optimized for p in self._trained):
            raise OptionError(
                message(
                    "an optimizer of the parameters that the function is given",
                    f"a {type(optimizer).__name__} that has none of them",
                    "pass optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
                )
            )
        return optimizer

    def _run(self, model: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the model, make a step, and return the output that it had before."""
        # One thread at a time: a step changes what another one's gradients are of.
        with (
            self._lock, torch.inference_mode(False), torch.enable_grad(), self._only_these(model)
        ):  # fmt: skip
            output = forward(*_map(_usable, args), **_map(_usable, kwargs))
            logits = logits_of(output, self._logits)
            if logits.numel():
                self._check(logits)
                loss = mean_entropy(logits)
                if not loss.requires_grad:
                    raise StatisticsError(
                        message(
                            "predictions whose gradients reach γ and β",
                            "some computed without gradients, as under torch.no_grad() within "
                            "the model's forward",
                            "remove that there, or adapt statistics alone: normkit.adapt(model)",
                        )
                    )
                gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
                self.unreached = sum(g is None for g in gradients)
                self._step(loss, gradients)
        return _map(Tensor.detach, output)

    def _check(self, logits: Tensor) -> None:
        if not self._checked and are_probabilities(logits):
            raise OptionError(
                message(
                    "logits of classes",
                    "probabilities, which are not negative and sum to 1",
                    "pass logits=lambda output: output.log()",
                )
            )
        self._checked = True

    def _step(self, loss: Tensor, gradients: tuple[Tensor | None, ...]) -> None:
        self.entropy = float(loss.detach())
        finite = [g.isfinite().all() for g in gradients if g is not None]
        if not finite or not bool(torch.stack([loss.isfinite(), *finite]).all()):
            return
        before = [p.grad for p in self._trained]
        try:
            for trained, gradient in zip(self._trained, gradients, strict=True):
                trained.grad = None if gradient is None else gradient.to(trained.dtype)
            self._optimizer.step()
            self.steps += 1
        finally:
            for trained, grad in zip(self._trained, before, strict=True):
                trained.grad = grad
        for parameter, trained in zip(self._parameters, self._trained, strict=True):
            if trained is not parameter:
                overwrite(parameter.detach(), trained.detach())

    @contextlib.contextmanager
    def _only_these(self, model: nn.Module) -> Iterator[None]:
        """Let γ and β require gradients, and no other parameter, which would take memory."""
        before = [(p, p.requires_grad) for p in model.parameters()]
        trained = set(map(id, self._parameters))
        try:
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in trained)
            yield
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)


class _MinimizingMixin(nn.Module):
    _minimizer: EntropyMinimizer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._minimizer.run(self, super().forward, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy, or a pickle, is of the model with its present γ and β, and trains no more.
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        state = {k: v for k, v in vars(self).items() if k not in ("_minimizer", "_normalizer")}
        base: type = vars(type(self))["_minimizing_from"]
        make = copyreg._reconstructor  # type: ignore[attr-defined]
        return (make, (vars(base).get("_adapted_from", base), object, None), state, *parts[3:])


def _minimizing_class(cls: type[nn.Module]) -> type[nn.Module]:
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    meta: Any = type(cls)
    return _MINIMIZING.get(cls) or _MINIMIZING.setdefault(
        cls, meta(cls.__name__, (_MinimizingMixin, cls), {**names, "_minimizing_from": cls})
    )


def minimize_in(model: nn.Module, minimizer: EntropyMinimizer) -> Step:
    """Return the step that lets each forward of ``model`` make a step of the minimizer."""
    classes: list[type[nn.Module]] = []

    def do() -> None:
        # Here and not before: the model may be a layer that is adapted by now.
        classes.append(type(model))
        object.__setattr__(model, "__class__", _minimizing_class(classes[0]))
        vars(model)["_minimizer"] = minimizer

    def undo() -> Skipped | None:
        if vars(model).get("_minimizer") is minimizer:
            del vars(model)["_minimizer"]
        if not isinstance(model, _MinimizingMixin):
            same = not classes or type(model) is classes[0]
            return None if same else Skipped("", type(model), "its class was changed again")
        object.__setattr__(model, "__class__", vars(type(model))["_minimizing_from"])
        return None

    return Step(do, undo)


def _usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save; those of inference mode may not be."""
    return tensor.clone() if tensor.is_inference() else tensor


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to the tensors in a value; containers keep their types."""
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{k: _map(function, getattr(value, k)) for k in fields})
    if isinstance(value, Mapping):
        items = {key: _map(function, each) for key, each in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, each) for each in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, each) for each in value)
    return value
