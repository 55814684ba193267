"""One teacher next to its student: what stands for what."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from operator import is_
from typing import Any, Iterator, Sequence, Tuple

from torch import Tensor, nn

from mmselfdistill.core.attributes import Attributes
from mmselfdistill.core.code import Code
from mmselfdistill.core.handed import Handed
from mmselfdistill.core.memory import address
from mmselfdistill.core.modes import is_norm
from mmselfdistill.core.parts import adopt_exchanged, adopt_parts, own_parts
from mmselfdistill.core.unmoved import Unmoved

# a module's path, and the name of a buffer of it
BufferName = Tuple[str, str]


class Twin:
    """Pairs a student's parts with those of one teacher.

    Args:
        student (nn.Module): The bare model.
        teacher (nn.Module): A copy of it.
        shared (Sequence[str]): Paths of what stays the student's.
        rests (bool): Whether the teacher is left out of some forward passes again and
            again. Defaults to False.

    Attributes:
        teacher (nn.Module): The teacher.
        versions (dict[int, Any]): The teacher's parameters, buffers and modules, by the
            ``id`` of the student's.
        memory (dict): Tensors of the student and of the teacher, by the address of the
            student's.
        handed (Handed): Gives the teacher's modules what the student's held.
        unmoved (Unmoved): Puts back the teacher's buffers.
        code (Code): Watches that the student runs what the teacher does.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        shared: Sequence[str] = (),
        rests: bool = False,
    ) -> None:
        self.teacher = teacher
        adopt_exchanged(student, teacher)
        adopt_parts(student, teacher)
        # held, so that no other part gets the id of one
        self._pairs = pairs = own_parts(student, teacher, shared)
        self.versions: dict[int, Any] = {id(ours): theirs for ours, theirs in pairs}
        self.memory = {address(ours): (ours, theirs) for ours, theirs in pairs}
        self.memory.pop(0, None)
        parts = dict(teacher.named_modules())
        modules = [
            (module, parts[path])
            for path, module in student.named_modules()
            if path in parts
        ]
        for ours, twin in modules:
            # a number that has become a weight since: what the teacher has is old
            for name in ours._parameters.keys() - twin._parameters.keys():
                twin.__dict__.pop(name, None)
        self.versions.update((id(ours), twin) for ours, twin in modules)
        self.handed = Handed(modules, rests)
        untrained = [
            theirs
            for ours, theirs in pairs
            if isinstance(ours, nn.Parameter) and not ours.requires_grad
        ]
        self.unmoved = Unmoved(teacher, untrained)
        self.code = Code(student, teacher)
        self._tables: list[Any] = [
            table
            for module in student.modules()
            for table in (module._modules, module._parameters)
            if isinstance(table, dict) and (table or table is module._modules)
        ]
        self._parts = [*self._now()]
        self._held = {path: module._buffers for path, module in parts.items()}
        self._shared = tuple(f'{path}.' for path in shared)
        self._paired: dict[BufferName, list[tuple[Tensor, Tensor]]] = {}
        # in how many of them a buffer is
        self._places: Counter[int] = Counter()

    def pair(self, name: BufferName, ours: Tensor) -> None:
        """Pair a buffer again: a forward pass may put another into its place."""
        path, key = name
        theirs, pairs = self._held.get(path, {}).get(key), self._paired.get(name, [])
        same = pairs and all(map(is_, pairs[-1], (ours, theirs)))
        if same or theirs is None or f'{path}.{key}.'.startswith(self._shared):
            return
        # a call may have been given the one before, which the forward pass exchanged
        self._paired[name] = [*pairs[-1:], (ours, theirs)]
        # two modules may hold one buffer
        self._places[id(ours)] += 1
        for old, _ in pairs[:-1]:
            self._places[id(old)] -= 1
            if not self._places[id(old)]:
                del self._places[id(old)]
                self.versions.pop(id(old), None)
                self.memory.pop(address(old), None)
        self.versions[id(ours)] = theirs
        if address(ours):
            self.memory[address(ours)] = ours, theirs

    def fits(self) -> bool:
        """Say whether no module or parameter of the student was exchanged."""
        parts = [*self._now()]
        return len(parts) == len(self._parts) and all(map(is_, parts, self._parts))

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._tables))


class Twins:
    """The twin of the teacher that there is, for all kinds of batches.

    Args:
        student (nn.Module): The bare model.
        shared (Sequence[str]): See :class:`Twin`.

    Attributes:
        rests (bool): See :class:`Twin`.
    """

    def __init__(self, student: nn.Module, shared: Sequence[str]) -> None:
        self.rests = False
        self._student, self._shared = student, shared
        self._twin: Twin | None = None
        self._attributes: Attributes | None = None
        # the student's tables of buffers, and what was in them before its forward pass
        self._tables: list[tuple[str, dict[str, Tensor | None]]] = []
        self._given: list[tuple[BufferName, Tensor]] = []

    def attributes(self) -> Attributes:
        """Return what reads the student, whose parts a hook may have exchanged."""
        if self._twin is not None and self._twin.fits():
            self._twin.code.check()
        else:
            self._attributes = None
        if self._attributes is None:
            self._attributes = Attributes(self._student)
            self._tables = [
                (path, module._buffers)
                for path, module in self._student.named_modules()
                # a norm's own are given to nothing else
                if not is_norm(module)
            ]
        self._given = [*self._buffers()]
        return self._attributes

    def of(self, teacher: nn.Module) -> Twin:
        """Return the twin of a teacher."""
        twin = self._twin
        if twin is None or twin.teacher is not teacher or not twin.fits():
            new = Twin(self._student, teacher, self._shared, self.rests)
            if twin is not None and twin.teacher is teacher:
                # what it remembers is still its own
                new.handed.follow(twin.handed)
                self._attributes = None
            self._twin = twin = new
        for name, buffer in (*self._given, *self._buffers()):
            twin.pair(name, buffer)
        return twin

    def _buffers(self) -> Iterator[tuple[BufferName, Tensor]]:
        for path, table in self._tables:
            for name, buffer in table.items():
                if buffer is not None:
                    yield (path, name), buffer

    def forget(self) -> None:
        """Let go of the teacher."""
        self._twin = None
