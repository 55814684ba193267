"""The teacher: a frozen, deterministic copy of the student, and how it is moved.

It keeps the structure that the model has in training (many families return
something else in evaluation), with all that is random or statistical off.
"""

from __future__ import annotations

from itertools import chain
from typing import Iterable, Iterator, List, Tuple

import torch
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from .apart import prove_apart as prove_apart
from .freeze import make_teacher as make_teacher
from .modes import still as still
from .pairing import Pairing, Pairs

Groups = List[Tuple[List[Tensor], List[Tensor]]]


@torch.no_grad()
def copy_into(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's parameters and buffers into the teacher, on all ranks.

    Rank 0's values are used everywhere: batch statistics differ between ranks. Buffers
    that are not saved stay each rank's own: their size may follow its images. A buffer
    that the teacher lacks is registered.

    Args:
        teacher (nn.Module): Is changed in place.
        student (nn.Module): The bare model.

    Raises:
        ValueError: If a parameter is missing, or a tensor that is saved has another
            shape.
    """
    averaged, copied = Pairing(teacher, student).pairs()
    _copy(_by_kind(averaged + copied))
    broadcast_from_rank_0(chain(teacher.parameters(), saved_buffers(teacher)))


class Average:
    r"""Moves a teacher towards its student, in few multi-tensor operations.

    .. math::
        \theta_T \leftarrow m \, \theta_T + (1 - m) \, \theta_S

    for parameters and for the running mean and variance of norms. Other buffers
    (counters, masks, constants) are copied: their average means nothing.
    Parameters are equal on all ranks as DDP keeps them; buffers that each rank
    gathers by itself are sent from rank 0, but for those that are not saved.

    Args:
        teacher (nn.Module): Is changed in place.
        student (nn.Module): The bare model.

    Raises:
        ValueError: If one has parameters that the other lacks.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self._teacher = teacher
        self._pairing = Pairing(teacher, student)
        self._averaged: Pairs = []
        self._groups: tuple[Groups, Groups] = ([], [])

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Take one step of the average.

        Args:
            momentum (float): The share :math:`m` that the teacher keeps.

        Raises:
            ValueError: If a parameter is missing, or a tensor that is saved has another
                shape.
        """
        averaged, copied = self._pairing.pairs()
        if averaged is not self._averaged:
            self._averaged = averaged
            self._groups = _by_kind(averaged), _by_kind(copied)
        for ours, theirs in self._groups[0]:
            torch._foreach_lerp_(*_alike(ours, theirs), 1 - momentum)
        _copy(self._groups[1])
        broadcast_from_rank_0(saved_buffers(self._teacher))


def _copy(groups: Groups) -> None:
    for ours, theirs in groups:
        torch._foreach_copy_(*_alike(ours, theirs))


def _by_kind(pairs: Pairs) -> Groups:
    # one kernel serves tensors of one dtype on one device
    kinds: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
    for ours, theirs in pairs:
        kind = ours.dtype, ours.device, theirs.dtype, theirs.device
        group = kinds.setdefault(kind, ([], []))
        group[0].append(ours)
        group[1].append(theirs)
    return list(kinds.values())


def _alike(
    ours: list[Tensor], theirs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of a group as real numbers, theirs of the kind of ours."""
    mine, other = ours[0], theirs[0]
    if (mine.dtype, mine.device) != (other.dtype, other.device):
        theirs = [t.to(o) for o, t in zip(ours, theirs)]
    if mine.is_complex():
        return [*map(_as_real, ours)], [*map(_as_real, theirs)]
    return ours, theirs


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those not saved included, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def saved_buffers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers of a model that its ``state_dict`` holds."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer


@torch.no_grad()
def broadcast_from_rank_0(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by rank 0's, one message for each dtype and device."""
    if get_world_size() == 1:
        return
    kinds: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        kind = kinds.setdefault((tensor.dtype, tensor.device), [])
        kind.append(_as_real(tensor))
    for group in kinds.values():
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
