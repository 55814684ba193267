"""Tensors that share memory: views, slices, what was detached."""

from __future__ import annotations

import torch
from torch import Tensor


def address(tensor: Tensor) -> int:
    """Return where the storage of a tensor begins, or 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, for one
        return 0


def place(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Return device and address of a tensor, or None where it has no numbers there."""
    start = address(tensor) if tensor.numel() else 0
    return (tensor.device, start) if start else None


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Say whether a tensor is another one, or a part of it: a frame, a reshaping."""
    return place(one) == (other.device, address(other))


def same_part(part: Tensor, whole: Tensor, version: Tensor) -> Tensor | None:
    """Return the part of another version of a tensor that is a part of the tensor.

    Args:
        part (Tensor): Shares memory with ``whole``.
        whole (Tensor): Of the student.
        version (Tensor): The teacher's version of ``whole``.

    Returns:
        Tensor | None: None where the two are laid out in other ways.
    """
    if _layout(whole) != _layout(version) or part.dtype != whole.dtype:
        return None
    with torch.no_grad():
        return version.as_strided(part.size(), part.stride(), part.storage_offset())


def _layout(tensor: Tensor) -> tuple[object, ...]:
    size = tensor.untyped_storage().nbytes()
    return size, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()
