"""What a model changes in place, so that a teacher that comes later sees it changed."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from mmengine.structures import BaseDataElement
from torch import Tensor

from mmselfdistill.containers import CODE, PLAIN, flat, tensors_in
from mmselfdistill.families.plan import Call


class Changes:
    """Watches the tensors of recorded calls, by the counts that PyTorch keeps.

    Attributes:
        errors (list[str]): Changes that a teacher cannot repeat.
        inside (set[str]): Seams that change what an earlier one returned, which the
            teacher's do too.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.inside: set[str] = set()
        # held, so that no other tensor gets the number of one
        self._seen: dict[int, tuple[Tensor, int]] = {}
        self._returned: dict[int, str] = {}
        self._objects: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._within: list[tuple[str, Tensor, int]] = []

    def begin(self, call: Call) -> None:
        """Note what a call is given."""
        self.note(None)
        # not what a data element holds: losses prepare their targets in place
        for each in flat((call.args, call.kwargs)):
            if isinstance(each, Tensor):
                self._keep([each])
            elif _is_object(each) and id(each) not in self._returned:
                self._objects[id(each)] = each, dict(vars(each))

    def end(self, call: Call) -> None:
        """Note what a call returned, and what was changed in it."""
        self.note(call.path)
        self._keep(tensors_in(call.output))
        self._returned.update((id(value), call.path) for _, value in call.returned)

    def end_within(self, call: Call) -> None:
        """Note what a call returned that was made within another."""
        self._within += [
            (call.path, tensor, tensor._version)
            for tensor in tensors_in(call.output)
            if not tensor.is_inference()
        ]

    def changed_within(self) -> set[str]:
        """Return the paths of such calls whose output was changed afterwards."""
        return {path for path, made, version in self._within if made._version > version}

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if not tensor.is_inference():
                self._seen[id(tensor)] = tensor, tensor._version

    def note(self, inside: str | None) -> None:
        """Note what was changed since the last time.

        Args:
            inside (str | None): The call that was made meanwhile, if one was.
        """
        for each, held in self._objects.values():
            for name, value in held.items():
                if vars(each).get(name) is not value:
                    held[name] = vars(each).get(name)
                    self.errors.append(
                        f'{inside or "between two recorded calls"}: {name!r} of a '
                        f'{type(each).__name__} that is given to a call is changed: '
                        "the teacher's call would be given the changed one. Pass a new "
                        'object'
                    )
        for key, (tensor, version) in self._seen.items():
            if tensor._version == version:
                continue
            self._seen[key] = tensor, tensor._version
            shape, made_by = tuple(tensor.shape), self._returned.get(key)
            if made_by is None:
                self.errors.append(
                    f'{inside or "between two recorded calls"}: a tensor {shape} that '
                    "is given to a call is changed in place: the teacher's call would "
                    'be given the changed one. Use the operation that returns a new '
                    'tensor'
                )
            elif inside is not None:
                self.inside.add(inside)
            else:
                self.errors.append(
                    f'{made_by}: a tensor {shape} that it returned was changed in '
                    "place afterwards: the teacher's is not. Use the operation that "
                    'returns a new tensor, inside of that call'
                )


def _is_object(value: Any) -> bool:
    # a data element is copied as it is at the call
    other = isinstance(value, (*PLAIN, *CODE, type, Mapping, BaseDataElement))
    return not other and isinstance(getattr(value, '__dict__', None), dict)
