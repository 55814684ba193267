"""What a teacher takes of its student without being given it."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from torch import Tensor

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.given import Known
from mmselfdistill.core.memory import place
from mmselfdistill.core.watch import Watch
from mmselfdistill.families.plan import Call


class Foreign(Watch):  # type: ignore[no-untyped-call]
    """Refuses operations of a teacher on what depends on its student's weights.

    It may reach such a tensor by a global variable, a context variable or a class,
    where no copy and no argument leads.

    Args:
        groups (Sequence): The student's calls that it repeats.
        memory (Mapping): Parameters and buffers of the student, and the teacher's.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Call]],
        memory: Mapping[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        calls = [call for group in groups for call in group]
        weights = [ours for ours, _ in memory.values()]
        made = [tensor for call in calls for tensor in tensors_in(call.output)]
        places = {place(t) for t in weights}
        places |= {place(t) for t in made if t.requires_grad}
        known = Known()
        for call in calls:
            # of calls within others, the student may choose what they are given; a
            # decoder returns the points that it was given
            given = tensors_in((call.args, call.kwargs))
            places -= {place(t) for t in given if call.depth > 0 or t not in known}
            known.add(call)
        self._places = places - {None}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make an operation.

        Raises:
            RuntimeError: If it takes a tensor of the student.
        """
        kwargs = kwargs or {}
        for each in tensors_in((args, kwargs)):
            if place(each) in self._places:
                raise RuntimeError(
                    f"it uses the student's own tensor {tuple(each.shape)}, which it "
                    'is not given, but reaches by a global variable, a context '
                    'variable or a class. Pass it as an argument'
                )
        return func(*args, **kwargs)
