"""One teacher next to its student: what stands for what."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any, Iterator, Sequence

from torch import nn

from mmselfdistill.core.code import Code
from mmselfdistill.core.handed import Handed
from mmselfdistill.core.memory import address
from mmselfdistill.core.modes import is_norm, keeps_statistics
from mmselfdistill.core.parts import adopt_exchanged, adopt_parts, own_parts
from mmselfdistill.core.unmoved import Unmoved


class Twin:
    """Pairs a student's parts with those of one teacher.

    Args:
        student (nn.Module): The bare model.
        teacher (nn.Module): A copy of it.
        shared (Sequence[str]): Paths of what stays the student's.
        rests (bool): Whether the teacher is left out of some iterations again and
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
        theirs = dict(teacher.named_modules())
        modules = [
            (module, theirs[path])
            for path, module in student.named_modules()
            if path in theirs
        ]
        for ours, twin in modules:
            # a number that has become a weight since: what the teacher has is old
            for name in ours._parameters.keys() - twin._parameters.keys():
                twin.__dict__.pop(name, None)
        self.versions.update((id(ours), twin) for ours, twin in modules)
        self.handed = Handed(modules, rests)
        # norms are off
        self.unmoved = Unmoved(m for m in teacher.modules() if not is_norm(m))
        self.code = Code(student, teacher)
        self._tables: list[Any] = [
            table
            for module in student.modules()
            for table in (module._modules, module._parameters, module._buffers)
            if isinstance(table, dict)
            and (table or table is module._modules)
            # images without labels are given copies of these, to leave them as they are
            and not (table is module._buffers and keeps_statistics(module))
        ]
        self._parts = [*self._now()]

    def fits(self) -> bool:
        """Say whether no module, parameter or buffer of the student was exchanged."""
        parts = [*self._now()]
        return len(parts) == len(self._parts) and all(map(is_, parts, self._parts))

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._tables))
