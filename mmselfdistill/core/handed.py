"""Gives a teacher's modules what the student's hold besides weights and buffers.

Numbers and text are the student's. Of tensors that a module holds, the teacher's
module has its own: the version of what a call returned, or what its own call has left
there. A tensor without gradient that a hook or the model has put there since is the
student's, as an argument would be.
"""

from __future__ import annotations

import weakref
from operator import is_
from typing import Any, Dict, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmselfdistill.containers import flat, replaced
from mmselfdistill.core.attributes import (
    CONTAINERS,
    GENERATORS,
    PLAIN,
    Held,
    are_equal,
    copy_of,
)

# tensors at one moment: which they are, and how often each was changed
_Moment = Tuple[Tuple['weakref.ref[Tensor]', int], ...]
_Place = Tuple[int, str]
_Last = Dict[_Place, Tuple[_Moment, _Moment]]
Left = Tuple[_Last, Dict[_Place, Any]]


class Handed:
    """Gives the modules of one teacher what the student's held when a call began.

    Args:
        pairs (Mapping[int, nn.Module]): Its modules, by the ``id`` of the student's.
        rests (bool): Whether the teacher is left out of some iterations again and
            again: what its calls left before is then not of the iteration before.
            Defaults to False.
    """

    def __init__(self, pairs: Mapping[int, nn.Module], rests: bool = False) -> None:
        self._rests = rests
        self._begins = True
        self._taken: set[str] = set()
        self._held: dict[int, dict[str, Any]] = {k: vars(m) for k, m in pairs.items()}
        # what both sides held when a call was given something the last time
        self._last: _Last = {
            (key, name): ((), _moment(value))
            for key, held in self._held.items()
            for name, value in held.items()
            if isinstance(value, (Tensor, *CONTAINERS)) and _moment(value)
        }

    def left(self) -> Left:
        """Return what the teacher's modules hold: a second replay has to find it."""
        held = {
            (key, name): copy_of(self._held[key][name])
            for key, name in self._last
            if name in self._held[key]
        }
        return dict(self._last), held

    def put_back(self, left: Left) -> None:
        """Put back what :meth:`left` returned."""
        self._begins, self._taken = True, set()
        self._last, held = dict(left[0]), left[1]
        for key, name in self._last:
            if (key, name) in held:
                _put_in(self._held[key], name, copy_of(held[key, name]))
            else:
                self._held[key].pop(name, None)

    def give(self, attributes: Sequence[Held], versions: Mapping[int, Any]) -> None:
        """Give the teacher's modules what the student's held when a call began.

        Args:
            attributes (Sequence[Held]): What each of the student's held.
            versions (Mapping[int, Any]): The teacher's version of the student's
                modules and tensors, by their ``id``.
        """
        for each in attributes:
            self._put(each, versions)
        self._begins = False

    def hint(self, message: str) -> str:
        """Return what to add to an error of the teacher's call."""
        if not any(f"'{name}'" in message for name in self._taken):
            return ''
        return (
            '. The student has a tensor there of which the teacher has no version: it '
            'depends on weights, and no recorded call returned it; or it is of an '
            'iteration in which the teacher was not run'
        )

    def _put(self, each: Held, versions: Mapping[int, Any]) -> None:
        held = self._held.get(each.key)
        if held is None:
            return
        try:
            same = all(map(is_, each.read(held), each.values))
        except KeyError:
            same = False
        if not same:
            held.update(zip(each.names, each.values))
        for name in each.gone:
            self._take(held, name)
        for name, value in each.numbers.items():
            if not are_equal(value, held.get(name)):
                _put_in(held, name, copy_of(value))
        for name, value in each.others.items():
            if isinstance(value, (*PLAIN, *GENERATORS)):
                held[name] = copy_of(value)
            else:
                self._put_tensors(each.key, name, value, versions)

    def _put_tensors(
        self, key: int, name: str, value: Any, versions: Mapping[int, Any]
    ) -> None:
        held, place = self._held[key], (key, name)
        mine, parts = held.get(name), [*flat(value)]
        before = self._last.get(place, ((), ()))
        known = any(id(part) in versions for part in parts)
        others = [t for t in _tensors(parts) if id(t) not in versions]
        # what the teacher's own call has left there is its own
        moved = bool(_moment(mine)) and not _is_same(_moment(mine), before[1])
        if known:
            given = not (moved and others)
        elif others and all(isinstance(part, (Tensor, *PLAIN)) for part in parts):
            same = (
                _is_same(_moment(value), before[0])
                if before[0]
                else _are_alike(value, mine)
            )
            given = not (moved or same)
        else:
            return
        if moved and not known and self._rests and self._begins:
            self._take(held, name)
        elif given and any(each.grad_fn is not None for each in others):
            # if the teacher reads it, it fails and says so
            self._take(held, name)
        elif given:
            copies = {id(each): each.detach().clone() for each in others}
            _put_in(held, name, replaced(value, {**copies, **versions}))
        self._last[place] = _moment(value), _moment(held.get(name))

    def _take(self, held: dict[str, Any], name: str) -> None:
        held.pop(name, None)
        self._taken.add(name)


def _put_in(held: dict[str, Any], name: str, value: Any) -> None:
    # two modules may hold one list, to hand something on
    mine: Any = held.get(name)
    if type(mine) is not type(value) or not isinstance(mine, (list, dict)):
        held[name] = value
    elif isinstance(mine, dict):
        mine.clear()
        mine.update(value)
    else:
        mine[:] = value


def _tensors(parts: Any) -> list[Tensor]:
    return [part for part in parts if isinstance(part, Tensor)]


def _moment(value: Any) -> _Moment:
    return tuple(
        (weakref.ref(each), -1 if each.is_inference() else each._version)
        for each in _tensors(flat(value))
    )


def _is_same(one: _Moment, other: _Moment) -> bool:
    return len(one) == len(other) and all(
        ref() is ref_before() is not None and version == before
        for (ref, version), (ref_before, before) in zip(one, other)
    )


def _are_alike(one: Any, other: Any) -> bool:
    """Say whether two containers hold equal numbers."""
    pairs = [*flat(one)], [*flat(other)]
    return len(pairs[0]) == len(pairs[1]) and all(map(_are_equal, *pairs))


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = _kind(one) == _kind(other) and not one.is_meta
        return alike and one.layout is torch.strided and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.device, tensor.layout
