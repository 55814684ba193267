"""The teacher: a frozen, stilled copy of the student.

It keeps the structure that the model has in training (many families return
something else in evaluation), with all that is random or statistical stilled.
"""

from __future__ import annotations

import copy
from typing import Iterable

import torch
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# they keep statistics in training, and are no norms of PyTorch's
_STATISTICAL = ('EMAModule', 'SyncBatchNorm')


def make_teacher(student: nn.Module) -> nn.Module:
    """Copy a model into a teacher that has no gradient and does not change.

    Args:
        student (nn.Module): The bare model, not its DDP wrapper.

    Returns:
        nn.Module: The teacher, on the student's device.
    """
    # mmcv's SyncBatchNorm holds its process group, which cannot be copied
    groups = [m.group for m in student.modules() if hasattr(m, 'group')]
    teacher = copy.deepcopy(student, {id(group): group for group in groups})
    teacher.requires_grad_(False)
    teacher.zero_grad(set_to_none=True)
    still(teacher)
    return teacher


def still(model: nn.Module) -> None:
    """Put a model in training mode, less all that is random or keeps statistics.

    Evaluation mode is set for batch and instance norms, for dropout of every
    kind, for mmcv's own ``SyncBatchNorm``, and for mmseg's ``EMAModule``, which
    in training updates its bases. A dropout rate that a module holds as a number
    is set to 0.
    """
    model.train()
    for module in model.modules():
        kind = type(module).__name__
        dropout = 'drop' in kind.lower() and not any(module.children())
        if isinstance(module, _NormBase) or kind in _STATISTICAL or dropout:
            module.training = False
        # timm's attention reads the rate of a dropout that it does not call
        _zero_dropout_rates(module, dropout)


def _zero_dropout_rates(module: nn.Module, dropout: bool) -> None:
    for name, value in list(vars(module).items()):
        rate = 'drop' in name.lower() or (dropout and name == 'p')
        if rate and isinstance(value, float):
            setattr(module, name, 0.0)


@torch.no_grad()
def copy_into(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's parameters and buffers into the teacher, on all ranks.

    Rank 0's values are used everywhere: batch statistics differ between ranks.
    """
    ours = tensors_of(teacher)
    for name, tensor in tensors_of(student).items():
        ours[name].copy_(tensor)
    broadcast_from_rank_0(ours.values())


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    r"""Move the teacher towards the student, in one multi-tensor operation.

    .. math::
        \theta_T \leftarrow m \, \theta_T + (1 - m) \, \theta_S

    for parameters and floating-point buffers; other buffers (counters) are
    copied. Parameters are equal on all ranks as DDP keeps them; buffers that
    each rank gathers by itself are sent from rank 0.

    Args:
        teacher (nn.Module): Is changed in place.
        student (nn.Module): The bare model.
        momentum (float): The share :math:`m` that the teacher keeps.
    """
    ours, theirs = tensors_of(teacher), tensors_of(student)
    names = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    torch._foreach_lerp_(
        [ours[name] for name in names],
        [theirs[name].detach() for name in names],
        1 - momentum,
    )
    for name in ours.keys() - set(names):
        ours[name].copy_(theirs[name])
    broadcast_from_rank_0(teacher.buffers())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those not saved included, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def broadcast_from_rank_0(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by rank 0's, one message for each dtype."""
    if get_world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        broadcast(flat, src=0)
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts):
            tensor.copy_(part.view_as(tensor))


def cost_of(teacher: nn.Module) -> tuple[int, float]:
    """Return the teacher's number of parameters, and its memory in MiB."""
    tensors = tensors_of(teacher).values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return sum(p.numel() for p in teacher.parameters()), size / 2**20


def mismatches(expected: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """List keys that are missing, unexpected, or of another shape."""
    shapes = [
        f'{key}: {tuple(given[key].shape)} in the file, {tuple(value.shape)} here'
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    groups = {
        'missing': [key for key in expected if key not in given],
        'unexpected': [key for key in given if key not in expected],
        'another shape': shapes,
    }
    return [f'{name}: {", ".join(keys)}' for name, keys in groups.items() if keys]
