"""What is frozen, and the same in student and teacher, runs once: in the student."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Collection, Hashable, Iterable, Iterator, Sequence

from mmengine.logging import print_log
from torch import Tensor, nn

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.containers import tensors_in
from mmselfdistill.core.frozen import (
    Marks,
    equal_modules,
    equal_tensors,
    frozen_modules,
)
from mmselfdistill.core.standins import (
    FrozenCall,
    FrozenCalls,
    LeakError,
    Uses,
    answered,
)
from mmselfdistill.families.plan import Call, Seam

# so often in a row a proof may not hold for a single iteration
_PATIENCE = 3
_NAMES = 8
_INPUTS = (
    'it is given something else than in the student, or what it returns is random or '
    'changed in place'
)
_WEIGHTS = "its weights are not the student's"
_OUTPUTS = "with the student's outputs in place of its own, the teacher's differ"
_CHANGES = 'its weights are changed again and again'
_LEAK = 'the model uses its output in another way than in the first iteration'


class Reuse:
    """Lets a teacher start from the student's activations where both are the same.

    A module is not run by the teacher if it is frozen in the student, has bitwise the
    student's weights, and is given the very tensors that the student's was: the teacher
    gets what that returned. The first iteration proves it, and the first after any
    change of these weights: the teacher repeats the calls in both ways, and all that it
    returns has to be equal, bit for bit. Else nothing is reused.

    Args:
        student (nn.Module): The bare model.

    Attributes:
        paths (dict[str, bool] | None): The modules that are reused, and whether
            anything else than they is given what they return. None before a proof.
        refused (str): Why what is frozen is not reused, or ''.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self.paths: dict[str, bool] | None = None
        self.refused = ''
        self._key: Hashable = None
        self._teacher: nn.Module | None = None
        # of the student and the teacher, of what is reused
        self._marks: list[Marks] = []
        self._lost = 0
        self._said: str | None = None
        # of the present iteration: what was recorded, and marks if it is to be proven
        self._frozen = FrozenCalls({})
        self._before: dict[str, Marks] | None = None

    @property
    def proves(self) -> bool:
        """Whether the teacher repeats the calls of this iteration in both ways."""
        return self._before is not None

    def forget(self) -> None:
        """Prove it again in the next iteration."""
        self.paths, self._teacher, self._marks, self._lost = None, None, [], 0

    def end(self) -> None:
        """Let go of the tensors of an iteration."""
        self._frozen = FrozenCalls({})

    @contextmanager
    def recorded(self, seams: Sequence[Seam], key: Hashable) -> Iterator[None]:
        """Record the frozen modules in a forward pass of the student.

        Args:
            seams (Sequence[Seam]): Calls that the teacher has to make: a module that
                holds one is run.
            key (Hashable): What the teacher will repeat: a proof holds for that alone.
        """
        self._before = None
        paths = self.paths or {}
        proving = self.paths is None or key != self._key
        if proving:
            found = [
                path
                for path in frozen_modules(self.student)
                if not any(_holds_seam(path, seam) for seam in seams)
            ]
            paths = dict.fromkeys(found if self._has_weights(found) else (), True)
            self._before = {path: _marks(self.student, [path]) for path in paths}
        self._frozen = FrozenCalls(paths, exact=proving)
        with self._frozen.recorded(self.student):
            yield

    def replayed(
        self, teacher: nn.Module, key: Hashable, repeat: Callable[[], list[Call]]
    ) -> list[Call]:
        """Return the teacher's calls, with those of frozen modules answered for.

        Args:
            teacher (nn.Module): The teacher.
            key (Hashable): What it repeats.
            repeat (Callable): Lets it repeat the student's calls.
        """
        if self.paths is None or key != self._key:
            if self._before is None:
                return repeat()
            made = repeat()
            self._prove(teacher, made, repeat)
            self._key = key
            return made
        if not self.paths:
            return repeat()
        if not self._holds(teacher):
            self._lost += 1
            self.paths = None
            if self._lost >= _PATIENCE:
                self._refuse(_CHANGES)
            return repeat()
        self._lost = 0
        try:
            with answered(teacher, self._frozen.calls):
                made = repeat()
        except DEVICE_ERRORS:
            raise
        except RuntimeError:
            # met a tensor without storage; any other error comes again below
            made = []
        if not made or any(tensor.is_meta for tensor in _returned(made)):
            self._refuse(_LEAK)
            return repeat()
        return made

    def _prove(
        self,
        teacher: nn.Module,
        expected: Sequence[Call],
        repeat: Callable[[], list[Call]],
    ) -> None:
        """Find the modules that are reused: the teacher's calls stay as expected."""
        assert self._before is not None
        self.paths, self.refused, self._teacher, self._marks = {}, '', teacher, []
        fixed = [path for path, marks in self._before.items() if marks.hold()]
        if not self._has_weights(fixed):
            return
        equal = equal_modules(self.student, teacher, fixed)
        calls = [c for c in self._frozen.calls if c.path in equal and c.is_valid()]
        paths, made = self._tried(teacher, calls, repeat)
        one, two = _returned(expected), _returned(made)
        if not self._has_weights(paths):
            called = {call.path for call in self._frozen.calls}
            other = self._has_weights(called.intersection(fixed) - equal)
            self._refuse(_WEIGHTS if other else _INPUTS)
        elif len(one) == len(two) and all(map(equal_tensors, one, two)):
            self.paths = paths
            # those of other modules may have been changed, and are of no use
            self._frozen.calls = [call for call in calls if call.path in paths]
            self._marks = [_marks(model, paths) for model in (self.student, teacher)]
            self._say()
        else:
            self._refuse(_OUTPUTS)

    def _tried(
        self,
        teacher: nn.Module,
        calls: list[FrozenCall],
        repeat: Callable[[], list[Call]],
    ) -> tuple[dict[str, bool], list[Call]]:
        """Return the modules that are answered for, and the teacher's calls then."""
        while self._has_weights({call.path for call in calls}):
            uses = Uses(calls)
            try:
                with answered(teacher, calls) as found, uses:
                    made = repeat()
                for each in made:
                    uses.note((each.args, each.kwargs, each.output))
            except LeakError as leak:
                calls = [call for call in calls if call.path != leak.path]
                continue
            except DEVICE_ERRORS:
                raise
            except RuntimeError:
                # by itself the teacher has just repeated the same
                break
            passed_on = {id(t) for call in found for t in tensors_in(call.given)}
            paths: dict[str, bool] = {}
            for call in found:
                ids = {id(tensor) for tensor in call.stand_ins}
                needed = bool(ids & uses.used) or not ids & passed_on
                paths[call.path] = needed or paths.get(call.path, False)
            return paths, made
        return {}, []

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Know that the teacher is averaged: an average of equal weights is equal."""
        held = bool(self._marks) and all(marks.hold() for marks in self._marks)
        yield
        if held:
            self._marks[1].renew()

    def describe(self) -> str:
        """Return a line on what is reused, or ''."""
        if self.paths:
            names = [path for path in self.paths if self._has_weights([path])]
            more = len(names) - _NAMES
            return (
                'Run once, since frozen and the same in student and teacher: '
                f'{", ".join(names[:_NAMES])}{f" and {more} more" if more > 0 else ""}.'
            )
        return self.refused and f'Frozen, but run by the teacher too: {self.refused}.'

    def _has_weights(self, paths: Collection[str]) -> bool:
        modules = map(self.student.get_submodule, paths)
        return any(True for module in modules for _ in module.parameters())

    def _holds(self, teacher: nn.Module) -> bool:
        same = teacher is self._teacher and all(each.hold() for each in self._marks)
        return same and all(call.is_valid() for call in self._frozen.calls)

    def _refuse(self, reason: str) -> None:
        self.paths, self.refused = {}, reason
        self._say()

    def _say(self) -> None:
        """Log what is another than before; the first is in the table."""
        before, self._said = self._said, self.describe()
        if before is not None and before != self._said:
            print_log(f'self_distill: {self._said}', logger='current')


def _holds_seam(path: str, seam: Seam) -> bool:
    return seam.path.startswith(f'{path}.') and seam.path != f'{path}.forward'


def _marks(model: nn.Module, paths: Iterable[str]) -> Marks:
    return Marks(map(model.get_submodule, paths))


def _returned(calls: Sequence[Call]) -> list[Tensor]:
    return [v for call in calls for _, v in call.returned if isinstance(v, Tensor)]
