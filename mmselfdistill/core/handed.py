"""Gives a teacher's modules what the student's hold besides weights and buffers.

Numbers and text are the student's. Of tensors that a module holds, the teacher's
module has its own: the version of what a call returned, or what its own call has left
there. A tensor without gradient that a hook or the model has put there since is the
student's, as an argument would be.
"""

from __future__ import annotations

import copy
from operator import is_
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Sequence, Tuple

from torch import Tensor, nn

from mmselfdistill.containers import flat, replaced
from mmselfdistill.core.attributes import (
    BASE,
    CONTAINERS,
    GENERATORS,
    SIMPLE,
    Held,
    Moment,
    Slot,
    are_equal,
    copy_of,
    is_kept,
    moment,
    tensors_at,
)
from mmselfdistill.core.frozen import equal_tensors


class _Record(NamedTuple):
    """What both sides held at a slot when it was last given, or after the calls.

    Args:
        read (Moment): The student's, when its call began.
        end (Moment): The student's, after the calls that changed it.
        theirs (Moment): The teacher's.
        made (bool): Whether a call of the teacher has left it there.
    """

    read: Moment
    end: Moment
    theirs: Moment
    made: bool


# whether it is saved, and by slot: the record, whether it holds, and a copy
Left = Tuple[bool, Dict[Slot, Tuple[_Record, bool, Any]]]
_ABSENT = object()
_NONE = _Record((), (), (), made=False)


class Handed:
    """Gives the modules of one teacher what the student's held when a call began.

    Args:
        pairs (Sequence[tuple[nn.Module, nn.Module]]): The student's and its.
        rests (bool): Whether the teacher is left out of some iterations again and
            again: what its calls left before is then not of the iteration before.
            Defaults to False.
    """

    def __init__(
        self, pairs: Sequence[tuple[nn.Module, nn.Module]], rests: bool = False
    ) -> None:
        self._ours = {id(ours): vars(ours) for ours, _ in pairs}
        self._held = {id(ours): vars(theirs) for ours, theirs in pairs}
        self._rests = rests
        self._begins = True
        self._taken: set[str] = set()
        self._shared: dict[int, dict[str, Slot]] = {}
        self._last = {
            (key, name): _Record((), (), moment(self._held[key][name]), made=False)
            for key, name in self._containers()
            if moment(self._held[key][name])
        }

    def _containers(self) -> Iterator[Slot]:
        for key, held in self._held.items():
            for name, value in held.items():
                if name not in BASE and isinstance(value, (Tensor, *CONTAINERS)):
                    yield key, name

    def follow(self, before: Handed) -> None:
        """Go on from what another noted of the same modules."""
        for slot, record in before._last.items():
            key, _ = slot
            if self._held.get(key) is before._held[key]:
                self._last[slot] = record

    def left(self, again: bool) -> Left:
        """Return what the teacher's modules hold before its calls.

        Args:
            again (bool): Whether it may make them more than once, each time from here.
        """
        found, copies = {}, _Copies()
        # what is empty yet, or not there, a call may fill
        small = (p for p in self._containers() if is_kept(self._held[p[0]][p[1]]))
        slots = dict.fromkeys(small, _NONE) if again else {}
        for (key, name), record in {**slots, **self._last}.items():
            value = self._held[key].get(name, _ABSENT)
            holds = _is_same(moment(value), record.theirs)
            found[key, name] = record, holds, copies.of(value) if again else None
        return again, found

    def put_back(self, left: Left) -> None:
        """Put back what :meth:`left` returned."""
        self._begins, self._taken, self._last = True, set(), {}
        (again, found), copies = left, _Copies()
        for (key, name), (record, holds, saved) in found.items():
            held = self._held[key]
            if again and saved is _ABSENT:
                held.pop(name, None)
            elif again:
                _put_in(held, name, copies.of(saved))
            theirs = moment(held.get(name)) if holds else ()
            self._last[key, name] = record._replace(theirs=theirs)

    def end(self) -> None:
        """Note what both sides hold after the calls."""
        for (key, name), record in [*self._last.items()]:
            theirs = moment(self._held[key].get(name))
            moved = not _is_same(theirs, record.theirs)
            # what the teacher's calls left alone was changed outside of the student's
            end = moment(self._ours[key].get(name)) if moved else record.read
            new = _Record(record.read, end, theirs, record.made or moved)
            if new == _NONE:
                # the settings of a model's layers are many, and hold no tensor
                del self._last[key, name]
            else:
                self._last[key, name] = new

    def give(self, attributes: Sequence[Held], versions: Mapping[int, Any]) -> None:
        """Give the teacher's modules what the student's held when a call began.

        Args:
            attributes (Sequence[Held]): What each of the student's held.
            versions (Mapping[int, Any]): The teacher's version of the student's
                modules and tensors, by their ``id``.
        """
        for each in attributes:
            self._part(each)
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
            'iteration in which the teacher was not run; or the call has changed in '
            'place what a hook has put there'
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
        self._share(each, held)
        for name, value in each.numbers.items():
            if not are_equal(value, held.get(name)):
                _put_in(held, name, copy_of(value))
        for name, value in each.others.items():
            if isinstance(value, (*SIMPLE, *GENERATORS)):
                held[name] = copy_of(value)
            else:
                self._put_tensors(each, name, value, versions)

    def _part(self, each: Held) -> None:
        """Let a module hold a container of its own where the student's does again."""
        before = self._shared.get(each.key, {})
        for name in before.keys() - each.shared.keys():
            held = self._held[each.key]
            if name in held:
                held[name] = copy.copy(held[name])
            self._last[each.key, name] = self._last.get(before[name], _NONE)

    def _share(self, each: Held, held: dict[str, Any]) -> None:
        """Let two modules hold one container where the student's do."""
        for name, (key, other) in each.shared.items():
            if other in self._held.get(key, {}):
                held[name] = self._held[key][other]
            else:
                self._take(held, name)
            self._last.pop((each.key, name), None)
        self._shared[each.key] = each.shared

    def _put_tensors(
        self, each: Held, name: str, value: Any, versions: Mapping[int, Any]
    ) -> None:
        held, slot = self._held[each.key], (each.key, name)
        mine, parts = held.get(name), [*flat(value)]
        known = any(id(part) in versions for part in parts)
        others = [t for t in tensors_at(parts) if id(t) not in versions]
        simple = all(isinstance(part, (Tensor, *SIMPLE)) for part in parts)
        if not known and not (others and simple):
            _put_numbers(mine, value)
            return
        if any(t.requires_grad and t.is_leaf for t in others):
            # it trains, though it is no parameter: the teacher has its copy
            return
        now, record = each.moments[name], self._last.get(slot, _NONE)
        # the call itself may have changed it in place since, as the teacher's will
        changed = not known and not _is_same(now, moment(value))
        # what a call of the teacher has left there is its own
        moved = bool(moment(mine)) and not _is_same(moment(mine), record.theirs)
        if known:
            given = not (moved and others)
        else:
            given = not moved and self._is_news(each, name, record, changed)
        missed = self._rests and self._begins and record.made and not known
        lost = changed or missed or any(t.grad_fn is not None for t in others)
        if given and lost:
            # if the teacher reads it, it fails and says so
            self._take(held, name)
        elif given:
            copies = {id(t): t.detach().clone() for t in others}
            own = {**copies, **_modules_in(mine, value), **versions}
            _put_in(held, name, replaced(value, own))
        theirs, made = moment(held.get(name)), record.made and not given
        self._last[slot] = _Record(now, record.end, theirs, made)

    def _is_news(self, each: Held, name: str, record: _Record, changed: bool) -> bool:
        """Say whether the student's tensors are others than those last given."""
        before = record.end if self._begins else record.read
        if before or record.end:
            return not _is_same(each.moments[name], before)
        mine = self._held[each.key].get(name)
        return not (changed or are_alike(each.others[name], mine))

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


def _modules_in(mine: Any, value: Any) -> dict[int, nn.Module]:
    """Return a container's own modules, by the ``id`` of the student's."""
    if type(mine) is not type(value) or not isinstance(value, dict):
        return {}
    pairs = [(value[key], mine[key]) for key in value.keys() & mine.keys()]
    return {id(v): m for v, m in pairs if isinstance(m, nn.Module)}


def _put_numbers(mine: Any, value: Any) -> None:
    """Put numbers and text into a container that has objects of its own besides."""
    if type(mine) is not type(value) or not isinstance(value, (list, dict)):
        return
    keys = range(len(value)) if isinstance(value, list) else value
    for key in keys if len(mine) == len(value) else ():
        if isinstance(value[key], SIMPLE):
            mine[key] = value[key]


class _Copies(Dict[int, Tensor]):
    """Copies of tensors: one each, as two modules may hold the same."""

    def of(self, value: Any) -> Any:
        """Return a value with copies of its tensors."""
        for each in tensors_at(value):
            if id(each) not in self:
                self[id(each)] = each.detach().clone()
        return replaced(value, self)


def _is_same(one: Moment, other: Moment) -> bool:
    return len(one) == len(other) and all(
        ref() is ref_before() is not None and version == before
        for (ref, version), (ref_before, before) in zip(one, other)
    )


def are_alike(one: Any, other: Any) -> bool:
    """Say whether two containers hold equal numbers."""
    pairs = [*flat(one)], [*flat(other)]
    return len(pairs[0]) == len(pairs[1]) and all(map(_are_equal, *pairs))


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return equal_tensors(one, other)
    return type(one) is type(other) and bool(one == other)
