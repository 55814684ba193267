"""Buffers of a teacher that no ``state_dict`` holds, or that it does not have yet."""

from __future__ import annotations

from typing import Mapping

from torch import Tensor, nn


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are in no ``state_dict``, by name."""
    saved = model.state_dict().keys()
    return {name: b for name, b in model.named_buffers() if name not in saved}


def put_buffers(
    model: nn.Module, saved: Mapping[str, Tensor], unsaved: Mapping[str, Tensor]
) -> None:
    """Give a model the buffers of a checkpoint.

    Those that are not saved get their values, and the size that they had. Of the
    others, those that the model makes at its first forward are registered: their
    values come with its ``state_dict``.

    Args:
        model (nn.Module): Is changed in place.
        saved (Mapping[str, Tensor]): Its ``state_dict``.
        unsaved (Mapping[str, Tensor]): See :func:`unsaved_buffers`.
    """
    here = {**dict(model.named_parameters()), **model.state_dict()}
    late = {name: value for name, value in saved.items() if name not in here}
    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    for name, tensor in {**late, **unsaved}.items():
        path, _, key = name.rpartition('.')
        owner = modules.get(path)
        # what is no buffer is of another model: strict loading says so
        if owner is not None and (key in owner._buffers or not hasattr(owner, key)):
            value = tensor.detach().to(device, copy=True)
            owner.register_buffer(key, value, persistent=name in saved)
