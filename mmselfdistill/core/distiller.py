"""Student, teacher and terms to losses: follow one batch from top to bottom."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn

from mmselfdistill.core.flow import Flow
from mmselfdistill.core.freeze import add_hooks
from mmselfdistill.core.pairs import Pair, pair
from mmselfdistill.core.parts import adopt_parts, lend, own_parts, with_named_seams
from mmselfdistill.core.recorder import record, replay, slice_back
from mmselfdistill.core.report import describe
from mmselfdistill.core.terms import ScheduleConfig, Term, TermConfigs, resolve_terms
from mmselfdistill.core.trial import try_term
from mmselfdistill.families import find_plan
from mmselfdistill.families.plan import Call, Plan, Seam, Side
from mmselfdistill.losses.common import reduced


class Distiller:
    r"""Adds the terms to the loss dict of the student's ``forward``.

    .. math::
        L = L_{task}(S, y) + \sum_k w_k(t) \frac{1}{|P_k|}
        \sum_{(s, \tau) \in P_k} D_k(s, \tau)

    with :math:`P_k` the pairs of tensors at the site of term :math:`k` (levels,
    stages), and :math:`w_k(t)` the product of ``loss_weight``, the term's weight
    and its schedule's factor at the progress :math:`t`. Where every weight is 0
    the teacher is not run.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
        plan (Plan): What its family says of it.
        terms (list[Term]): The terms.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.

    Attributes:
        teacher (nn.Module | None): The teacher; without one, no term is active.
        trial (nn.Module | None): A teacher for the checks of the first iteration,
            where the real one comes later.
        progress (float): Position in the run or generation, in [0, 1].
        forwards (int): How often the student's loss was computed.
        computed (int): How often a term was computed with a weight above 0.
        acting (list): The student's own hooks that return new values.
        found (list[str]): Seams that the first iteration found besides the plan's.
    """

    def __init__(
        self,
        student: nn.Module,
        plan: Plan,
        terms: list[Term],
        loss_weight: float = 1.0,
    ) -> None:
        self.student = student
        self.plan = plan
        self.terms = terms
        self.loss_weight = loss_weight
        self.teacher: nn.Module | None = None
        self.trial: nn.Module | None = None
        self.progress = 0.0
        self.forwards = 0
        self.computed = 0
        self.shapes: dict[str, list[str]] = {}
        self.acting: list[Callable[..., Any]] = []
        self.found: list[str] = []
        self._mutating: set[str] = set()
        # of which teacher; the student's tensors, held so that no other gets their id
        self._own_of: nn.Module | None = None
        self._own: list[tuple[Tensor, Tensor]] = []
        self._stock: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Start to extend the student's ``forward``."""
        if self._stock is None:
            self._stock = self.student.forward
            self._replaced = vars(self.student).get('forward')
            vars(self.student)['forward'] = _DistilledForward(self, self._stock)

    def detach(self) -> None:
        """Leave the student as it was."""
        if self._stock is not None:
            vars(self.student).pop('forward')
            if self._replaced is not None:
                vars(self.student)['forward'] = self._replaced
            self._stock = None

    def weights(self) -> dict[str, float]:
        """Return the weight of each term at the present progress."""
        if self.teacher is None:
            return {term.name: 0.0 for term in self.terms}
        return {
            term.name: self.loss_weight * term.weight * term.schedule(self.progress)
            for term in self.terms
        }

    def forward(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the student's ``forward`` returns, with the terms added.

        Raises:
            KeyError: If the model has a loss of a term's name.
        """
        if kwargs.get('mode', args[2] if len(args) > 2 else 'tensor') != 'loss':
            return stock(*args, **kwargs)
        self.forwards += 1
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else [])
        weights = self.weights()
        active = [term for term in self.terms if weights[term.name] > 0]
        if not self.shapes:
            losses, ours = self._first(stock, args, kwargs, samples, active)
        elif active:
            with record(self.student, self.plan.seams) as calls:
                losses = stock(*args, **kwargs)
            ours = self.divergences(active, calls, samples)
        else:
            losses, ours = stock(*args, **kwargs), {}
        if not isinstance(losses, dict):
            return losses
        added = self._weighted(ours, weights)
        taken = sorted(added.keys() & losses.keys())
        if taken:
            raise KeyError(f'self_distill: the model already has the losses {taken}')
        return {**losses, **added}

    def divergences(
        self, terms: Sequence[Term], calls: list[Call], samples: Any
    ) -> dict[str, Tensor]:
        """Return the divergence of each term, averaged over the pairs of its site.

        Args:
            terms (Sequence[Term]): The terms to compute.
            calls (list[Call]): The student's recorded calls.
            samples (Sequence): The batch's annotations.
        """
        assert self.teacher is not None
        self.computed += 1
        sides = self._sides(self.teacher, terms, calls, samples)
        pairs = {term.name: pair(term.site, *sides) for term in terms}
        values = {
            term.name: [term.divergence(each) for each in pairs[term.name]]
            for term in terms
        }
        norms = self._norms(pairs, values)
        return {
            term.name: self._mean(term, pairs[term.name], values[term.name], norms)
            for term in terms
        }

    def _sides(
        self, teacher: nn.Module, terms: Sequence[Term], calls: list[Call], samples: Any
    ) -> tuple[Side, Side]:
        """Let the teacher repeat what the sites of some terms depend on."""
        if self._own_of is not teacher:
            adopt_parts(self.student, teacher)
            self._own = own_parts(self.student, teacher, self.plan.shared)
            self._own_of = teacher
        own_ids = {id(ours): theirs for ours, theirs in self._own}
        paths = {path for term in terms for path in term.site.seams}
        groups = slice_back(calls, paths, self._mutating)
        with lend(self.student, teacher, self.plan.shared):
            made = replay(teacher, groups, self.plan, own_ids)
        ours = [call for group in groups for call in group]
        return Side(self.student, ours, samples), Side(teacher, made, samples)

    def _norms(
        self, pairs: dict[str, list[Pair]], values: dict[str, list[Tensor]]
    ) -> dict[tuple[str, int], Tensor]:
        """Return what each pair's sum is divided by, averaged over ranks.

        So that several processes give the gradient of one with the whole batch. Each
        pair has its place: another rank may have taken a branch that this one did not.
        """
        if get_world_size() == 1:
            return {}
        places = [(t, i) for t in pairs for i in range(len(self.shapes.get(t, [])))]
        found = {
            (name, i): each.norm_of(values[name][i])
            for name in pairs
            for i, each in enumerate(pairs[name])
        }
        zero = torch.zeros((), device=self._device())
        vector = torch.stack([found.get(p, zero).float().to(zero) for p in places])
        all_reduce(vector, 'mean')
        return dict(zip(places, vector))

    def _mean(
        self,
        term: Term,
        pairs: list[Pair],
        values: list[Tensor],
        norms: dict[tuple[str, int], Tensor],
    ) -> Tensor:
        # tied to every parameter of the loss: each rank has to have its gradient
        total = sum((p.sum() * 0 for p in term.loss.parameters()), self._zero())
        for i, (each, value) in enumerate(zip(pairs, values)):
            norm = norms.get((term.name, i), each.norm)
            total = total + reduced(value, each.weight, norm).to(total.device)
        # no pair: a branch that this batch did not take
        return total / max(len(pairs), 1)

    def _weighted(
        self, divergences: dict[str, Tensor], weights: dict[str, float]
    ) -> dict[str, Tensor]:
        result = {}
        for term in self.terms:
            weight = weights[term.name]
            value = divergences.get(term.name, self._zero())
            result[f'loss_sd_{term.name}'] = weight * value
            # MMEngine sums every key that holds "loss"
            key = f'sd_{term.name.replace("loss", "term")}'
            result[key] = value.detach()
            result[f'{key}_weight'] = torch.full_like(value.detach(), weight)
        return result

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._device())

    def _first(
        self,
        stock: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: Any,
        active: list[Term],
    ) -> tuple[Any, dict[str, Tensor]]:
        """Make the first forward pass: check what can be wrong, and report."""
        flow = Flow(self.student, self.plan)
        with flow.watched() as calls:
            losses = stock(*args, **kwargs)
        plan, calls = flow.completed()
        self.found = [seam.path for seam in plan.seams[len(self.plan.seams) :]]
        self.plan = plan
        self._mutating, self.acting = flow.mutating, flow.acting
        teacher, self.trial = self.teacher or self.trial, None
        # a term may become active only hours later; one of weight 0 never does
        due = [term for term in self.terms if self.loss_weight * term.weight > 0]
        # two: what one has read without gradient is not read again
        alone = [Side(self.student, calls, samples) for _ in range(2)]
        sides = alone
        if teacher is not None and due:
            add_hooks(teacher, self.student, self.acting)
            sides = [*self._sides(teacher, due, calls, samples)]
        for term in self.terms:
            pairs = pair(term.site, *(sides if term in due else alone))
            try_term(term, pairs, self.plan)
            self.shapes[term.name] = [
                'x'.join(str(size) for size in each.student.shape) for each in pairs
            ]
        if teacher is not self.teacher:
            # the first generation holds no teacher
            self._own_of, self._own = None, []
        print_log(describe(self), logger='current')
        return losses, self.divergences(active, calls, samples) if active else {}


class _DistilledForward:
    """The student's ``forward`` with the terms; a copy of the student has its own."""

    def __init__(self, distiller: Distiller, stock: Callable[..., Any]) -> None:
        self.distiller = distiller
        self.stock = stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.distiller.forward(self.stock, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copying and pickling leave the distiller behind
        return _itself, (self.stock,)


def _itself(stock: Callable[..., Any]) -> Callable[..., Any]:
    return stock


def build_distiller(
    model: nn.Module,
    terms: TermConfigs | None = None,
    schedule: ScheduleConfig = None,
    loss_weight: float = 1.0,
    seams: Sequence[str] = (),
) -> Distiller:
    """Find a model's plan, and build the terms of its distiller.

    Args:
        model (nn.Module): The student, not its DDP wrapper.
        terms (Mapping, optional): They merge over the defaults of the model's sites.
        schedule (Mapping | str, optional): Of terms without one of their own.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.
        seams (Sequence[str]): Paths of methods, or of modules, that the teacher has to
            repeat besides those of the plan. Defaults to ().

    Returns:
        Distiller: Without a teacher yet.

    Raises:
        ValueError: If a term or a seam is wrong, or no family covers the model.
    """
    plan = with_named_seams(model, find_plan(model), seams)
    built = resolve_terms(model, plan, terms, schedule)
    paths = [path for term in built for path in term.site.seams]
    plan = plan.with_seams(*map(Seam, paths))
    return Distiller(model, plan, built, loss_weight)
