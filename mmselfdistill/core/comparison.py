"""Student against teacher on one kind of batch: with labels, or without."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.core.apart import uncalled
from mmselfdistill.core.average import averaged
from mmselfdistill.core.flow import Flow
from mmselfdistill.core.foreign import Foreign
from mmselfdistill.core.freeze import add_hooks, check_same_weights
from mmselfdistill.core.given import check_given, of_the_loss
from mmselfdistill.core.handed import Left
from mmselfdistill.core.pairs import READ_ERRORS, Pair, first_pair, pair
from mmselfdistill.core.parts import lend
from mmselfdistill.core.recorder import Recording, record, slice_back
from mmselfdistill.core.replay import replay
from mmselfdistill.core.reuse import Reuse
from mmselfdistill.core.terms import Term
from mmselfdistill.core.twin import Twins
from mmselfdistill.families.plan import Call, Plan, Side, Site


@dataclass
class Batch:
    """What the sites and the teacher need of a batch besides the student's calls.

    Args:
        samples (Sequence, optional): The annotations, as the model got them. Defaults
            to None: the images have no labels.
        views (list): Pairs of images, as the student and as the teacher sees them.
            Defaults to none: both see the same.
        confidence (float, optional): See :class:`Side`. Defaults to None.
        metas (Sequence): See :class:`Side`. Defaults to ().
    """

    samples: Sequence[Any] | None = None
    views: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    confidence: float | None = None
    metas: Sequence[Mapping[str, Any]] = ()

    def side(self, model: nn.Module, calls: list[Call]) -> Side:
        """Return the side of a model that made some calls."""
        return Side(model, calls, self.samples, self.confidence, self.metas)

    def site(self, term: Term) -> Site:
        """Return the site of a term, as it is on these images."""
        return term.site.on(self.samples is not None)


class Comparison:
    """Records the student's calls, lets the teacher repeat them, computes the terms.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
        plan (Plan): How it is recorded and read.

    Attributes:
        checked (bool): Whether the first iteration has been made.
        plan (Plan): With the seams that the first iteration found besides.
        shapes (dict): Of the tensors that each term compares, from the first iteration
            on.
        acting (list): The student's own hooks that return new values.
        found (list[str]): Seams that the first iteration found.
        mutating (set[str]): Seams that change what an earlier one returned.
        changed (set[str]): Those within others whose output is changed afterwards.
        reuse (Reuse): What the teacher need not run.
        dtype (torch.dtype | None): To which the teacher's calls are autocast; None: as
            the student's are.
        twins (Twins): What stands for what: one for all kinds of batches.
    """

    def __init__(self, student: nn.Module, plan: Plan) -> None:
        self.student = student
        self.plan = plan
        self.checked = False
        self.shapes: dict[str, list[str]] = {}
        self.acting: list[Callable[..., Any]] = []
        self.found: list[str] = []
        self.mutating: set[str] = set()
        self.changed: set[str] = set()
        self.reuse = Reuse(student)
        self.dtype: torch.dtype | None = None
        self.twins = Twins(student, plan.shared)
        # what the teacher's modules held when the iteration began
        self._left: Left | None = None

    def names(self) -> list[str]:
        """Return the names of the terms that apply to these batches."""
        return [name for name, shapes in self.shapes.items() if shapes]

    def run(
        self,
        forward: Callable[[], Any],
        batch: Batch,
        teacher: nn.Module,
        terms: Sequence[Term],
    ) -> tuple[Any, dict[str, Tensor]]:
        """Make a forward pass.

        Returns:
            tuple: What it returned, and the divergence of each term.
        """
        seams, self._left = self.plan.seams, None
        recording = Recording(attributes=self.twins.attributes())
        with self.reuse.recorded(seams, _paths(terms, batch)), record(
            self.student, seams, recording
        ):
            output = forward()
        calls = of_the_loss(recording.calls)
        check_given(self.student, self.plan, calls, recording.changes.errors)
        self.mutating |= recording.changes.inside
        divergences = self.divergences(teacher, terms, calls, batch)
        self.reuse.end()
        return output, divergences

    def watch(self, forward: Callable[[], Any], batch: Batch) -> tuple[Any, list[Call]]:
        """Make the first forward pass, and complete the plan by what it shows.

        Returns:
            tuple: What it returned, and the recorded calls.

        Raises:
            RuntimeError: If the teacher cannot repeat it.
        """
        self._left = None
        recording = Recording(attributes=self.twins.attributes())
        flow = Flow(self.student, self.plan, batch.views, recording)
        self.reuse.forget()
        with self.reuse.recorded(self.plan.seams, None), flow.watched() as calls:
            output = forward()
        plan, calls = flow.completed()
        self.found = [seam.path for seam in plan.seams[len(self.plan.seams) :]]
        self.plan = plan
        changes, self.acting = flow.recording.changes, flow.acting
        self.mutating, self.changed = changes.inside, changes.changed_within()
        return output, calls

    def first_pairs(
        self,
        teacher: nn.Module | None,
        terms: Sequence[Term],
        due: Sequence[Term],
        calls: list[Call],
        batch: Batch,
    ) -> dict[str, list[Pair]]:
        """Return the pairs of each term, of a first iteration, and note their shapes.

        Args:
            teacher (nn.Module | None): The teacher; without one, or where a term is
                not due, the student stands for both sides.
            terms (Sequence[Term]): All terms.
            due (Sequence[Term]): Those that become active in the run.
            calls (list[Call]): The student's.
            batch (Batch): Of these calls.
        """
        # two: what one has read without gradient is not read again
        alone = batch.side(self.student, calls), batch.side(self.student, calls)
        sides = alone
        if teacher is not None and due:
            check_same_weights(teacher, self.student)
            add_hooks(teacher, self.student, self.acting)
            with uncalled(self.student):
                sides = self.sides(teacher, due, calls, batch)
        pairs = {}
        for term in terms:
            active = term in due and sides is not alone
            given = (*sides, self.dtype) if active else alone
            pairs[term.name] = first_pair(term.name, batch.site(term), *given)
            self._check_alone(term, len(pairs[term.name]), calls, batch)
        self.shapes = {
            name: ['x'.join(str(size) for size in each.student.shape) for each in found]
            for name, found in pairs.items()
        }
        self._agree()
        return pairs

    def _check_alone(
        self, term: Term, count: int, calls: list[Call], batch: Batch
    ) -> None:
        """See that a term finds as much where it is the only active one.

        Raises:
            ValueError: If its site reads more calls than it names.
        """
        site = batch.site(term)
        groups = slice_back(calls, frozenset(site.seams), self.mutating)
        kept = [call for group in groups for call in group]
        try:
            with torch.no_grad():
                found = len(site.read(batch.side(self.student, kept)))
        except DEVICE_ERRORS:
            raise
        except READ_ERRORS:
            # it asks for a call that is not there
            found = 0
        if found != count:
            raise ValueError(
                f'terms.{term.name}: the site {site.name!r} reads calls of other seams '
                f'than it names, {site.seams}: without other terms it would have '
                f'{found} tensors, not {count}. Name them in Site.seams'
            )

    def _agree(self) -> None:
        """Let all ranks have a place for each pair that any of them has."""
        if get_world_size() == 1 or not self.shapes:
            return
        counts = torch.tensor(
            [len(found) for found in self.shapes.values()], device=self.zero().device
        )
        all_reduce(counts, 'max')
        for found, count in zip(self.shapes.values(), counts.tolist()):
            found += ['none here'] * (count - len(found))

    def forget(self) -> None:
        """Let go of the teacher."""
        self.twins.forget()
        self._left = None
        self.reuse.forget()

    def divergences(
        self,
        teacher: nn.Module,
        terms: Sequence[Term],
        calls: list[Call],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Return the divergence of each term, averaged over the pairs of its site.

        Args:
            teacher (nn.Module): The teacher.
            terms (Sequence[Term]): The terms to compute.
            calls (list[Call]): The student's recorded calls.
            batch (Batch): Of these calls.
        """
        sides = self.sides(teacher, terms, calls, batch)
        pairs = {
            term.name: pair(batch.site(term), *sides, self.dtype) for term in terms
        }
        return averaged(terms, pairs, self.shapes, self.zero())

    def sides(
        self,
        teacher: nn.Module,
        terms: Sequence[Term],
        calls: list[Call],
        batch: Batch,
    ) -> tuple[Side, Side]:
        """Let the teacher repeat what the sites of some terms depend on."""
        twin = self.twins.of(teacher)
        paths = _paths(terms, batch)
        groups = slice_back(calls, paths, self.mutating)

        if self._left is None:
            self._left = twin.handed.left(not self.checked or self.reuse.proves)
        left = self._left
        # once: later it may be answered with what the student returned
        watched = iter([] if self.checked else [Foreign(groups, twin.memory)])

        def repeat() -> list[Call]:
            twin.handed.put_back(left)
            lent = lend(self.student, teacher, self.plan.shared)
            with lent, twin.unmoved.held(), next(watched, nullcontext()):
                made = replay(
                    *(teacher, groups, self.plan, twin.versions, batch.views),
                    dtype=self.dtype,
                    memory=twin.memory,
                    handed=twin.handed,
                )
            twin.handed.end()
            return made

        made = self.reuse.replayed(teacher, paths, repeat)
        ours = [call for group in groups for call in group]
        return batch.side(self.student, ours), batch.side(teacher, made)

    def zero(self) -> Tensor:
        """Return 0 on the student's device."""
        return torch.zeros((), device=next(self.student.parameters()).device)


def _paths(terms: Sequence[Term], batch: Batch) -> frozenset[str]:
    """Return the seams that some terms read."""
    return frozenset(path for term in terms for path in batch.site(term).seams)
