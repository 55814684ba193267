"""Student, teacher and terms to losses: follow one batch from top to bottom."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmselfdistill.containers import replaced
from mmselfdistill.core.added import joined, weighted_terms
from mmselfdistill.core.attached import Attachment
from mmselfdistill.core.comparison import Batch, Comparison
from mmselfdistill.core.keys import SKIPPED, UNLABELED
from mmselfdistill.core.minimised import Minimised
from mmselfdistill.core.modes import use_batch_statistics
from mmselfdistill.core.report import describe
from mmselfdistill.core.terms import Term
from mmselfdistill.core.trial import first_iteration
from mmselfdistill.core.unlabeled import Unlabeled
from mmselfdistill.families.plan import Plan
from mmselfdistill.schedules import Schedule
from mmselfdistill.views import View
from mmselfdistill.views_of import views_of

# their views are other draws than those of images with labels
_OTHER_DRAWS = 1


class Distiller:
    r"""Adds the terms to the loss dict of the student's ``forward``.

    .. math::
        L = \alpha(t) L_{task}(S, y) + \sum_k w_k(t) \frac{1}{|P_k|}
        \sum_{(s, \tau) \in P_k} D_k(s, \tau)

    with :math:`P_k` the pairs of tensors at the site of term :math:`k` (levels,
    stages), and :math:`w_k(t)` the product of ``loss_weight``, the term's weight
    and its schedule's factor at the progress :math:`t`. Where every weight is 0
    the teacher is not run. A batch of images without labels adds the same sum over
    its own pairs, times its weight.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
        plan (Plan): What its family says of it.
        terms (list[Term]): The terms.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.
        task_weight (Schedule, optional): The factor :math:`\alpha` on the student's own
            losses. Defaults to None: 1.
        view (View, optional): What the student sees of images with labels. Defaults to
            None: the images, as its teacher.
        unlabeled (Unlabeled, optional): Images without labels. Defaults to None.
        teacher_norm (str, optional): 'running' or 'batch': see
            :func:`use_batch_statistics`. Defaults to None: the plan's.
        every (int): The teacher is run in each iteration whose number this divides, and
            the weights are multiplied by it. Defaults to 1.
        teacher_dtype (torch.dtype, optional): To which the teacher's calls are
            autocast. Defaults to None: as the student's are.

    Attributes:
        attachment (Attachment): Of it to the student.
        minimised (Minimised): Sees that the terms are a part of what is minimised.
        labeled (Comparison): Of batches with labels.
        teacher (nn.Module | None): The teacher; without one, no term is active.
        trial (nn.Module | None): A teacher for the checks of the first iteration,
            where the real one comes later.
        progress (float): Position in the run or generation, in [0, 1].
        run_progress (float): Position in the run, in [0, 1].
        seed (int): The run's: what views draw by, with the iteration.
        iteration (int): Its number in the run: by it the teacher may rest.
        trained (list[str]): Names of the terms whose losses the optimizer trains, as
            they were built: a hook may freeze one later.
        predicts (bool): Whether the teacher makes the predictions of the student.
        forwards (int): How often the student's loss was computed.
        computed (int): How often a term was computed with a weight above 0.
    """

    def __init__(
        self,
        student: nn.Module,
        plan: Plan,
        terms: list[Term],
        loss_weight: float = 1.0,
        task_weight: Schedule | None = None,
        view: View | None = None,
        unlabeled: Unlabeled | None = None,
        teacher_norm: str | None = None,
        every: int = 1,
        teacher_dtype: torch.dtype | None = None,
    ) -> None:
        self.student = student
        self.terms = terms
        self.trained = sorted(
            term.name
            for term in terms
            if any(p.requires_grad for p in term.loss.parameters())
        )
        self.loss_weight = loss_weight
        self.task_weight = task_weight
        self.view = view
        self.unlabeled = unlabeled
        self.teacher_norm = teacher_norm or plan.teacher_norm
        self.every = every
        self.labeled = Comparison(student, plan)
        for each in self.comparisons():
            each.dtype, each.twins = teacher_dtype, self.labeled.twins
        self.labeled.twins.rests = every > 1 or (
            unlabeled is not None and self._reads(True) != self._reads(False)
        )
        self.teacher: nn.Module | None = None
        self.trial: nn.Module | None = None
        self.progress = self.run_progress = 0.0
        self.seed = self.iteration = 0
        self.predicts = False
        self.forwards = 0
        self.computed = 0
        self.attachment = Attachment(student)
        self.minimised = Minimised()

    def _reads(self, labeled: bool) -> set[str]:
        """Return the seams that are read of images with labels, or without."""
        other = 'unlabeled' if labeled else 'labeled'
        terms = [t for t in self.terms if t.on != other and self.whole_weight(t) > 0]
        return {path for term in terms for path in term.site.on(labeled).seams}

    def attach(self) -> bool:
        """Start to extend the student's ``forward``; say whether it was not yet."""
        return self.attachment.put_on(self)

    def detach(self) -> None:
        """Leave the student as it was."""
        self.attachment.take_off()

    def restart(self) -> None:
        """Check the next iteration as the first."""
        for each in self.comparisons():
            each.checked = False
        self.minimised.forget()

    def comparisons(self) -> list[Comparison]:
        """Return the comparison of each kind of batch."""
        others = [self.unlabeled.comparison] if self.unlabeled else []
        return [self.labeled, *others]

    def prove_again(self) -> None:
        """Check in the next iteration what the teacher need not run."""
        for each in self.comparisons():
            each.reuse.forget()

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Say that the teacher becomes an average of itself and the student."""
        with ExitStack() as stack:
            for each in self.comparisons():
                stack.enter_context(each.reuse.averaging())
            yield

    def acting(self) -> list[Callable[..., Any]]:
        """Return the student's own hooks that return new values."""
        return [hook for each in self.comparisons() for hook in each.acting]

    def whole_weight(self, term: Term) -> float:
        """Return the weight of a term where its schedule's factor is 1."""
        return self.loss_weight * term.weight

    def weights(self) -> dict[str, float]:
        """Return the weight of each term at the present progress."""
        if self.teacher is None or self.iteration % self.every:
            return {term.name: 0.0 for term in self.terms}
        return {
            term.name: self.every
            * self.whole_weight(term)
            * term.schedule(
                self.run_progress if term.schedule.over == 'run' else self.progress
            )
            for term in self.terms
        }

    def forward(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the student's ``forward`` returns, with the terms added.

        Raises:
            KeyError: If the model has a loss of a term's name.
            TypeError: If the model returns no dict of losses.
        """
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        # a loss may be validated too
        if mode != 'loss' or not (self.student.training or torch.is_grad_enabled()):
            other = self.teacher if self.predicts else None
            return (stock if other is None else other.forward)(*args, **kwargs)
        self.forwards += 1
        if self.unlabeled is not None:
            # its copy to the device waits for all that is queued there: nothing as yet
            self.unlabeled.next(advance=False)
        first = not all(each.checked for each in self.comparisons())
        weights = self.weights()
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else [])
        inputs = kwargs.get('inputs', args[0] if args else None)
        shown, views = views_of(self.view, inputs, samples, self._seeds())
        if shown:
            args, kwargs = replaced((args, kwargs), shown)
        losses, found = self._compare(
            self.labeled,
            lambda: stock(*args, **kwargs),
            Batch(samples, views),
            [term for term in self.terms if term.on != 'unlabeled'],
            weights,
        )
        added = weighted_terms(self.labeled, found, weights)
        if self.unlabeled is not None:
            added.update(self._on_unlabeled(self.unlabeled, stock, weights))
        if first and all(each.checked for each in self.comparisons()):
            self.trial = None
            print_log(describe(self), logger='current')
        added = self.minimised.watched(losses, added)
        task = self.task_weight
        factor = None if task is None else task.clamped(self.run_progress)
        return joined(type(self.student).__name__, losses, added, factor)

    def _on_unlabeled(
        self, unlabeled: Unlabeled, stock: Callable[..., Any], weights: dict[str, float]
    ) -> dict[str, Tensor]:
        """Run the student on a batch without labels, and return the weighted terms."""
        comparison = unlabeled.comparison
        weights = {name: unlabeled.weight * w for name, w in weights.items()}
        first = not comparison.checked
        # after the first iteration, those whose site these images reach
        terms = [
            term
            for term in self.terms
            if term.on != 'labeled' and (first or comparison.shapes[term.name])
        ]
        active = any(weights[term.name] > 0 for term in terms)
        found: dict[str, Tensor] = {}
        if active or first:
            inputs, samples, metas = unlabeled.next(advance=active)
            seeds = (*self._seeds(), _OTHER_DRAWS)
            shown, views = views_of(unlabeled.view, inputs, samples, seeds, metas)
            inputs = replaced(inputs, shown)
            with unlabeled.apart(self._seeds(), active):
                _, found = self._compare(
                    comparison,
                    lambda: unlabeled.forward(stock, inputs, samples),
                    Batch(None, views, unlabeled.confidence, metas),
                    terms,
                    weights,
                )
        added = weighted_terms(comparison, found, weights, UNLABELED)
        if unlabeled.batches.skip_broken:
            added[SKIPPED] = comparison.zero() + unlabeled.skipped
        return added

    def _seeds(self) -> tuple[int, int]:
        return self.seed, self.iteration

    def _compare(
        self,
        comparison: Comparison,
        forward: Callable[[], Any],
        batch: Batch,
        terms: Sequence[Term],
        weights: dict[str, float],
    ) -> tuple[Any, dict[str, Tensor]]:
        """Make a forward pass; return its output, and the terms that are active."""
        active = [term for term in terms if weights[term.name] > 0]
        if comparison.checked:
            if not active:
                return forward(), {}
            assert self.teacher is not None
            self.computed += 1
            return comparison.run(forward, batch, self._ready(self.teacher), active)
        # a term may become active only hours later; one of weight 0 never does
        due = [*filter(self.whole_weight, terms)]
        teacher = self.teacher or self.trial
        if teacher is not None:
            self._ready(teacher)
        output, calls = first_iteration(comparison, forward, batch, teacher, terms, due)
        if teacher is not self.teacher:
            # the first generation holds no teacher
            comparison.forget()
        found: dict[str, Tensor] = {}
        if active:
            assert self.teacher is not None
            self.computed += 1
            active = [term for term in active if comparison.shapes[term.name]]
            found = comparison.divergences(self.teacher, active, calls, batch)
        comparison.reuse.end()
        return output, found

    def _ready(self, teacher: nn.Module) -> nn.Module:
        # in each iteration: a hook may let the student's norms train, or stop them
        if self.teacher_norm == 'batch':
            use_batch_statistics(teacher, self.student)
        return teacher
