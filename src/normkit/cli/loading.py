"""Load what the options of a command name: a model, its checkpoint, its batches, a device."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from normkit.errors import OptionError, message

if TYPE_CHECKING:
    import torch
    from torch import nn

    from normkit.cli.checkpoint import StateDictPart

__all__ = [
    "load_batches",
    "load_content",
    "load_device",
    "load_example",
    "load_model",
    "read_samples",
]


def read_samples(samples: str) -> int | None:
    """Return the number that --samples stands for; None for all.

    Raises:
        OptionError: it is neither.
    """
    if samples == "all":
        return None
    try:
        return int(samples.replace("_", ""))
    except ValueError:
        raise OptionError(
            message(
                "--samples as a number or 'all'",
                repr(samples),
                "pass a whole number, such as --samples 10000, or leave it out",
            )
        ) from None


def load_device(name: str) -> torch.device:
    """Return the device that --device names.

    Raises:
        OptionError: torch cannot use it here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # An assertion where torch was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            message(
                "--device as a device that torch can use here",
                f"{name} ({str(error).splitlines()[0]})",
                "leave it out for the CPU",
            )
        ) from None
    return device


def load_model(name: str, option: str) -> nn.Module:
    """Import the model called ``name``, or call the function that makes it.

    Raises:
        OptionError: there is none; see :func:`normkit.cli.objects.find_object`.
        StatisticsError: it is on the meta device.
    """
    from torch import nn

    from normkit.cli.objects import call_or_return, find_object
    from normkit.statistics.check_arguments import check_has_values

    model = call_or_return(
        find_object(name, option),
        lambda value: isinstance(value, nn.Module),
        "a torch.nn.Module",
        option,
    )
    check_has_values(model)
    assert isinstance(model, nn.Module)
    return model


def load_content(model: nn.Module, content: Any, key: str | None) -> StateDictPart:
    """Load a checkpoint's content into the model; return the part of it that fits.

    Raises:
        DataError, OptionError: none fits, or several do.
    """
    from normkit.cli.checkpoint import load_part, locate_part

    part = locate_part(content, model, key)
    load_part(model, part, content)
    return part


def load_batches(name: str, option: str, device: torch.device) -> Iterable[Any]:
    """Import the batches called ``name``, or call the function that returns them.

    Each is moved to ``device`` when it is drawn.

    Raises:
        OptionError, TypeMismatchError: there are none.
    """
    from torch import nn

    from normkit.cli.objects import call_or_return, find_object
    from normkit.statistics.batches.map_batches import map_batches
    from normkit.statistics.batches.tensors import to_device
    from normkit.statistics.check_arguments import check_batches

    batches = call_or_return(
        find_object(name, option),
        # What cannot be called is for check_batches to refuse, and so is a module.
        lambda value: isinstance(value, (Iterable, nn.Module)) or not callable(value),
        "an iterable of batches, such as a DataLoader,",
        option,
    )
    check_batches(batches)
    if device.type == "cpu":
        return batches  # type: ignore[no-any-return]
    return map_batches(partial(to_device, device=device), batches)


def load_example(name: str | None, shape: str | None, device: torch.device) -> Any:
    """Return the batch called ``name``, or random numbers of a shape, on ``device``.

    Raises:
        OptionError: neither or both were given, there is no such batch, or it is no shape.
    """
    import torch

    from normkit.cli.objects import call_or_return, find_object
    from normkit.statistics.batches.tensors import tensors_in, to_device

    if (name is None) is (shape is None):
        raise OptionError(
            message(
                "either --example or --shape",
                "neither" if name is None else "both",
                "pass e.g. --shape 1,3,224,224",
            )
        )
    if name is not None:
        example = call_or_return(
            find_object(name, "--example"),
            lambda value: bool(tensors_in(value)),
            "a batch with a tensor",
            "--example",
        )
        return to_device(example, device)
    try:
        sizes = [int(size) for size in str(shape).split(",")]
        assert min(sizes) > 0
    except (ValueError, AssertionError):
        raise OptionError(
            message(
                "--shape as whole numbers with commas between", repr(shape),
                "pass e.g. --shape 1,3,224,224",
            )
        ) from None  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sizes, generator=generator).to(device)
