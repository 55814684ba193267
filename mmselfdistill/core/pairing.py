"""Which tensor of the teacher belongs to which of the student."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from .modes import is_norm

_Tensors = Dict[str, Any]  # tensors, and None
Pairs = List[Tuple[Tensor, Tensor]]
_STATISTICS = ('running_mean', 'running_var')


class _Place(NamedTuple):
    """Where a tensor is registered in both models.

    The place is kept rather than the tensor: a buffer may be assigned again.
    """

    name: str
    key: str
    of_teacher: _Tensors
    of_student: _Tensors
    teacher: nn.Module
    student: nn.Module
    parameter: bool
    averaged: bool
    # a buffer that is not saved: the model makes it, and its size may follow the image
    cache: bool


class Pairing:
    """Pairs the tensors of teacher and student, by their names.

    The modules are walked once, and again only when names have changed. Where every
    tensor still has its memory, the pairs of the last call are returned as they are.

    Args:
        teacher (nn.Module): Is given the buffers that it lacks.
        student (nn.Module): The bare model.

    Raises:
        ValueError: If one has parameters that the other lacks.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self.teacher = teacher
        self.student = student
        self._places: list[_Place] = []
        self._children: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._names: list[tuple[_Tensors, tuple[str, ...]]] = []
        self._places_in_memory: list[int] = []
        self._pairs: tuple[Pairs, Pairs] = ([], [])
        self._build()

    def pairs(self) -> tuple[Pairs, Pairs]:
        """Return pairs of teacher's and student's tensors, each tensor once.

        Returns:
            tuple[list, list]: What an average is taken of, and what is copied. The
            very same lists as long as no tensor was exchanged.

        Raises:
            ValueError: If names differ, or shapes of what is saved. Nothing is changed
                then.
        """
        if self._has_changed():
            self._build()
        elif self._places_in_memory == self._in_memory():
            return self._pairs
        self._check()
        averaged: Pairs = []
        copied: Pairs = []
        done: dict[int, Tensor] = {}  # a tensor may be registered in two places
        for place in self._places:
            of_student = _get(place.of_student, place.key)
            if of_student is None:
                continue
            of_teacher = _get(place.of_teacher, place.key)
            if of_teacher is None or of_teacher.shape != of_student.shape:
                of_teacher = _adopt(place, of_student)
            if done.get(id(of_teacher), of_student) is not of_student:
                of_teacher = _untied(place, of_teacher)
            if id(of_teacher) not in done:
                done[id(of_teacher)] = of_student
                number = of_teacher.is_floating_point() or of_teacher.is_complex()
                kind = averaged if place.averaged and number else copied
                kind.append((of_teacher, of_student.detach()))
        self._places_in_memory = self._in_memory()
        self._pairs = averaged, copied
        return self._pairs

    def _in_memory(self) -> list[int]:
        # a tensor that was exchanged has another address, because the pairs of the last
        # call keep the memory of the one before
        return [
            _address(_get(held, place.key))
            for place in self._places
            for held in (place.of_teacher, place.of_student)
        ]

    def _build(self) -> None:
        of_teacher = dict(self.teacher.named_modules())
        of_student = dict(self.student.named_modules())
        _refuse('the teacher lacks', _lacking(of_student, of_teacher))
        _refuse('the student lacks', _lacking(of_teacher, of_student))
        everything = [*of_teacher.values(), *of_student.values()]
        held = [each for m in everything for each in (m._parameters, m._buffers)]
        self._children = [(m._modules, dict(m._modules)) for m in everything]
        self._names = [(tensors, tuple(tensors.keys())) for tensors in held]
        self._places = [
            place
            for path in of_student
            if path in of_teacher
            for place in _places(path, of_teacher[path], of_student[path])
        ]

    def _has_changed(self) -> bool:
        return any(now != before for now, before in self._children) or any(
            tuple(now.keys()) != before for now, before in self._names
        )

    def _check(self) -> None:
        missing, other = [], []
        for place in self._places:
            of_teacher, of_student = (
                _get(place.of_teacher, place.key),
                _get(place.of_student, place.key),
            )
            if of_student is None:
                continue
            if (
                of_teacher is not None
                and of_teacher.shape != of_student.shape
                and not place.cache
            ):
                shapes = f'{tuple(of_teacher.shape)} and {tuple(of_student.shape)}'
                other.append(f'{place.name}: {shapes}')
            elif of_teacher is None and place.parameter:
                missing.append(place.name)
        _refuse('the teacher lacks', missing)
        _refuse('teacher and student have other shapes', other)


def _get(held: _Tensors, key: str) -> Any:
    # a scripted module's is no dict, and has no get
    return held[key] if key in held else None  # noqa: SIM401


def _address(tensor: Any) -> int:
    if tensor is None:
        return -1
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f'self_distill: {what}: {", ".join(names)}')


def _lacking(have: dict[str, nn.Module], other: dict[str, nn.Module]) -> list[str]:
    names = []
    for path, module in have.items():
        twin = other.get(path)
        # a buffer that only one has is no error, if there is a place for it
        held: _Tensors = dict(module._parameters)
        if twin is None:
            held.update(module._buffers)
        for key, tensor in held.items():
            known = twin is not None and _get(twin._parameters, key) is not None
            if tensor is not None and not known:
                names.append(_joined(path, key))
    return names


def _joined(path: str, key: str) -> str:
    return f'{path}.{key}' if path else key


def _places(path: str, teacher: nn.Module, student: nn.Module) -> Iterator[_Place]:
    norm = is_norm(teacher)
    kinds = (
        (True, teacher._parameters, student._parameters),
        (False, teacher._buffers, student._buffers),
    )
    for parameter, of_teacher, of_student in kinds:
        for key in of_student.keys():  # noqa: SIM118
            yield _Place(
                name=_joined(path, key),
                key=key,
                of_teacher=of_teacher,
                of_student=of_student,
                teacher=teacher,
                student=student,
                parameter=parameter,
                averaged=parameter or (norm and key in _STATISTICS),
                cache=not parameter and key in student._non_persistent_buffers_set,
            )


def _adopt(place: _Place, of_student: Tensor) -> Tensor:
    # a buffer that the student made at its first forward, or for another size of image
    vars(place.teacher).pop(place.key, None)
    of_teacher = of_student.detach().clone()
    place.teacher.register_buffer(place.key, of_teacher, persistent=not place.cache)
    return of_teacher


def _untied(place: _Place, of_teacher: Tensor) -> Tensor:
    # the student's was tied to another when the teacher was copied
    alone = of_teacher.detach().clone()
    place.of_teacher[place.key] = (
        nn.Parameter(alone, False) if place.parameter else alone
    )
    return place.of_teacher[place.key]
