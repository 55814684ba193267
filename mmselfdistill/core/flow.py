"""The first iteration: does every value that the teacher is given exist for it?

Replay gives the teacher the student's own tensor wherever it knows no version of the
teacher's. That is right for RoIs, queries and noise, and wrong for what depends on the
student's weights: a term would then be 0, or too small, without a word.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Callable, Iterator, Sequence

from torch import Tensor, nn

from mmselfdistill.containers import CODE, method_in, snapshot, tensors_in
from mmselfdistill.core.apart import walk
from mmselfdistill.core.given import (
    CANNOT,
    Known,
    hidden_in,
    needs_version,
    of_the_loss,
    to_replace,
    unknown,
)
from mmselfdistill.core.memory import share_memory
from mmselfdistill.core.recorder import Recording, record
from mmselfdistill.core.traced import Traced
from mmselfdistill.families.plan import Call, Plan, Seam
from mmselfdistill.wrapping import observed_hooks, resolve, uncompiled


@dataclass(eq=False)
class _ModuleCall:
    """A call of a module outside of all seams: it may become one."""

    call: Call
    begin: int
    position: int
    # how often each tensor that it was given was changed before
    versions: dict[int, int | None]
    # how many tensors were known before to be computed of weights
    traced: int
    # which of them it has changed in place
    changed: set[int] = field(default_factory=set)


@dataclass
class Flow:
    """What is seen of one forward pass besides the calls of its seams.

    Args:
        model (nn.Module): The student.
        plan (Plan): How it is recorded.
        views (Sequence): Pairs of images, as the student and as the teacher sees them.
            Defaults to (): both see the same.
    """

    model: nn.Module
    plan: Plan
    views: Sequence[tuple[Tensor, Tensor]] = ()
    recording: Recording = field(default_factory=Recording)
    # hooks that returned a new value: they are a part of the model
    acting: list[Callable[..., Any]] = field(default_factory=list)
    _modules: list[_ModuleCall] = field(default_factory=list)
    _errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        recording = self.recording

        def outside() -> bool:
            # not by way of this object: a cycle would keep all activations
            return recording.depth == 0

        weights = chain(self.model.parameters(), self.model.buffers())
        self._weights = Traced(weights, outside)
        self._images = Traced([seen for seen, _ in self.views], outside)

    @contextmanager
    def watched(self) -> Iterator[list[Call]]:
        """Record a forward pass, and watch what happens between the seams."""
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                stack.enter_context(observed_hooks(module, self.acting))
                if path:
                    for handle in self._watch_module(path, module):
                        stack.callback(handle.remove)
            calls = record(self.model, self.plan.seams, self.recording)
            stack.enter_context(self._weights)
            if self.views:
                stack.enter_context(self._images)
            yield stack.enter_context(calls)
        self._errors += self.recording.changes.errors

    def completed(self) -> tuple[Plan, list[Call]]:
        """Return plan and calls with the modules that were missing among the seams.

        Raises:
            RuntimeError: If the teacher would be given what depends on the student's
                weights, or if a value is changed in place after a seam returned it.
        """
        calls, found = of_the_loss(self.recording.calls), []
        self._check_images(calls)
        parts = {id(each) for each in self.model.modules()}
        parts |= {id(each) for each in self.model.parameters()}
        pending = list(calls)
        while pending:
            call = pending.pop()
            # it may return what it is given
            known = Known([each for each in calls if each is not call])
            self._check_functions(call, known, parts)
            self._errors += hidden_in(self.plan, call, known)
            for where, orphan in self._orphans(call, known):
                made = self._made_by(orphan)
                if made is None:
                    self._refuse(call, where, orphan)
                elif made not in found:
                    self._check_hooks(made.call.path)
                    found.append(made)
                    calls.append(made.call)
                    pending.append(made.call)
        merged = list(self.recording.calls)
        # from the end: positions before it stay
        for each in sorted(found, key=lambda m: (m.position, m.begin), reverse=True):
            merged.insert(each.position, each.call)
        self._check_order(of_the_loss(merged))
        if self._errors:
            raise RuntimeError(CANNOT + '\n  '.join(dict.fromkeys(self._errors)))
        seams = [Seam(each.call.path) for each in found]
        return self.plan.with_seams(*seams), of_the_loss(merged)

    def _check_order(self, calls: Sequence[Call]) -> None:
        """See that what a call is given was returned by an earlier one."""
        known = Known()
        for call in calls:
            for where, orphan in self._orphans(call, known):
                self._refuse(call, where, orphan)
            known.add(call)

    def _orphans(self, call: Call, known: Known) -> Iterator[tuple[str, Tensor]]:
        """Yield arguments of a call that depend on weights and come from no call."""
        for where, each in to_replace(self.model, self.plan, call):
            if self._depends(each) and each not in known:
                yield where, each

    def _check_functions(self, call: Call, known: Known, parts: set[int]) -> None:
        """Refuse functions that hold a part of the student, or what a call returned."""
        for where, value in to_replace(self.model, self.plan, call):
            function = isinstance(value, CODE) and not isinstance(value, nn.Module)
            method = method_in(value)
            if (
                not function
                or value in known
                or id(getattr(method, '__self__', 0)) in parts
            ):
                continue
            below = (each for _, each in walk(value, lambda hook: False))
            if any(
                id(each) in parts or (isinstance(each, Tensor) and each in known)
                for each in below
            ):
                self._errors.append(
                    f'{call.path}: its argument {where} is a function that holds a '
                    'part of the student: the teacher would run that. Pass the module, '
                    'the method or the tensors themselves'
                )

    def _depends(self, value: Any) -> bool:
        """Say whether a teacher needs its own version of a value."""
        if not isinstance(value, Tensor) or self._weights.is_source(value):
            # of a part of a weight, the teacher has its own by its place
            return False
        if needs_version(value):
            return True
        if self._images.is_made(value) or self._weights.is_made(value):
            return True
        made = self._made_by(value)
        # what is frozen in the student may be another in its teacher
        if made is None:
            return False
        owner, _ = resolve(self.model, made.call.path)
        return any(True for _ in owner.parameters())

    def _check_images(self, calls: list[Call]) -> None:
        if not self.views:
            return
        traced = self._images
        given = [value for call in calls for _, value in call.given]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if traced.changed:
            self._errors.append(
                f'the model changes the image in place ({", ".join(traced.changed)}) '
                "before a recorded call takes it: the teacher's is not changed. Use "
                'the operation that returns a new tensor, inside of that call'
            )
        elif not any(traced.is_source(t) or traced.is_made(t) for t in tensors):
            self._errors.append(
                'view: no recorded call is given the image: the teacher cannot be '
                'shown another one than the student'
            )

    def _made_by(self, orphan: Tensor) -> _ModuleCall | None:
        # the last to end is the outermost
        for each in reversed(self._modules):
            # one that passes it on has not made it
            if id(orphan) in each.versions and id(orphan) not in each.changed:
                continue
            if any(value is orphan for value in tensors_in(each.call.output)):
                return each
        return None

    def _refuse(self, call: Call, where: str, orphan: Tensor) -> None:
        on = 'weights, or on the perturbed image' if self.views else 'weights'
        self._errors.append(unknown(call.path, where, orphan, on))

    def _watch_module(self, path: str, module: nn.Module) -> Iterator[Any]:
        begun: list[_ModuleCall] = []
        seam = f'{path}.forward'

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self.recording.depth == 0:
                given = (snapshot(args), snapshot(kwargs))
                call = Call(seam, 0, *given)
                self.recording.begin(call)
                position = len(self.recording.calls)
                versions = {id(t): _version(t) for t in tensors_in(given)}
                traced = len(self._weights.made)
                made = _ModuleCall(call, len(self._modules), position, versions, traced)
                begun.append(made)

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.recording.depth > 0:
                return
            if any(each.path == seam for each in self.plan.seams):
                self._check_output(seam, output)
            elif begun:
                each = begun.pop()
                each.changed = {
                    id(value)
                    for _, value in each.call.given
                    if _version(value) != each.versions.get(id(value))
                }
                # one that holds a seam cannot be one
                if each.position == len(self.recording.calls):
                    each.call.end(output)
                    # what it returns is its own: it may become a seam
                    self._weights.forget(each.traced)
                    if not each.call.trains:
                        # what is within is not held: a model's own teacher may be large
                        del self._modules[each.begin :]
                    self._modules.append(each)

        yield module.register_forward_pre_hook(uncompiled(before), with_kwargs=True)
        yield module.register_forward_hook(uncompiled(after), with_kwargs=True)

    def _check_output(self, path: str, output: Any) -> None:
        last = next((c for c in reversed(self.recording.calls) if c.path == path), None)
        ours = [] if last is None else tensors_in(last.output)
        pairs = zip(ours, tensors_in(output))
        # a backward hook returns a view
        if any(a is not b and not share_memory(a, b) for a, b in pairs):
            self._errors.append(_hooked(path))

    def _check_hooks(self, path: str) -> None:
        # of a module that was no seam, only what its hooks returned was seen
        hooks = resolve(self.model, path)[0]._forward_hooks.values()
        if any(hook in self.acting for hook in hooks):
            self._errors.append(_hooked(path))


def _version(value: Any) -> int | None:
    counted = isinstance(value, Tensor) and not value.is_inference()
    return value._version if counted else None


def _hooked(path: str) -> str:
    return (
        f'{path}: a forward hook replaces what it returns, which the teacher does not '
        'repeat. Put what the hook does into forward'
    )
