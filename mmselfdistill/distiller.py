"""Student, teacher and terms to losses: follow one batch from top to bottom."""

from __future__ import annotations

import io
import logging
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.logging import print_log
from rich.box import ASCII
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmselfdistill.replay import Call, lend, record, replay
from mmselfdistill.sites import Family, Pair, Replayed, find_family
from mmselfdistill.teacher import cost_of
from mmselfdistill.terms import ScheduleConfig, Term, TermConfigs, resolve_terms


class Distiller:
    r"""Adds the terms to the loss dict of the student's ``forward``.

    .. math::
        L = L_{task}(S, y) + \sum_k w_k(t) \frac{1}{|P_k|}
        \sum_{(s, \tau) \in P_k} D_k(s, \tau)

    with :math:`P_k` the pairs of tensors at the site of term :math:`k` (levels,
    stages), and :math:`w_k(t)` the product of ``loss_weight``, the term's weight
    and its schedule's factor at the progress :math:`t`. Where every weight is 0
    the teacher is not run. The student itself is not changed: two of PyTorch's
    forward hooks do all of it, so that gradients reduce under DDP as always.

    Args:
        family (Family): The student's family.
        terms (list[Term]): The terms.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.

    Attributes:
        teacher (nn.Module | None): The teacher; without one, no term is active.
        progress (float): Position in the run or generation, in [0, 1].
    """

    def __init__(
        self, family: Family, terms: list[Term], loss_weight: float = 1.0
    ) -> None:
        self.family = family
        self.student = family.model
        self.teacher: nn.Module | None = None
        self.terms = terms
        self.loss_weight = loss_weight
        self.progress = 0.0
        self.shapes: dict[str, list[str]] = {}
        paths = [
            f'{term.site}.forward'
            for term in terms
            if term.site not in family.readers()
        ]
        self.observed = family.observed()
        self.shared = family.shared()
        self.kept = family.kept()
        seams = [*family.seams(), *self.observed, *self.kept, *paths]
        self.seams = list(dict.fromkeys(seams))
        self._recording = ExitStack()
        self._calls: list[Call] | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Start to extend the student's ``forward``."""
        before = self.student.register_forward_pre_hook(
            self._before_forward, with_kwargs=True
        )
        # always_call: an error in the model must not leave it being recorded
        after = self.student.register_forward_hook(
            self._after_forward, with_kwargs=True, always_call=True
        )
        self._handles = [before, after]

    def detach(self) -> None:
        """Leave the student as it was."""
        while self._handles:
            self._handles.pop().remove()

    def weights(self) -> dict[str, float]:
        """Return the weight of each term at the present progress."""
        if self.teacher is None:
            return {term.name: 0.0 for term in self.terms}
        return {
            term.name: self.loss_weight * term.weight * term.schedule(self.progress)
            for term in self.terms
        }

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if _mode(args, kwargs) != 'loss':
            return
        # without a teacher only the first iteration is recorded: to show shapes
        if any(self.weights().values()) or not self.shapes:
            recording = record(self.student, self.seams, self.family.state())
            self._calls = self._recording.enter_context(recording)

    def _after_forward(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        losses: Any,
    ) -> dict[str, Any] | None:
        if _mode(args, kwargs) != 'loss':
            return None
        calls, self._calls = self._calls, None
        self._recording.close()
        # an error inside the model goes its own way
        if not isinstance(losses, dict):
            return None
        data_samples = kwargs.get('data_samples', args[1] if len(args) > 1 else [])
        ours = self.losses(calls, data_samples)
        taken = sorted(ours.keys() & losses.keys())
        if taken:
            raise KeyError(f'self_distill: the model already has the losses {taken}')
        return {**losses, **ours}

    def losses(self, calls: list[Call] | None, data_samples: Any) -> dict[str, Tensor]:
        """Return every term's weighted loss, 0 for a term that is not active.

        Args:
            calls (list[Call] | None): The student's recorded calls, or None if
                no term is active.
            data_samples (Sequence): The batch's annotations.

        Returns:
            dict[str, Tensor]: A float32 scalar for each ``loss_sd_<name>``.
        """
        weights = self.weights()
        active = any(weights.values())
        replayed = None
        if calls is not None:
            # without a teacher, shapes are read from the student on both sides
            made = self._replay(calls) if active else calls
            teacher = self.teacher if active else None
            replayed = Replayed(list(zip(calls, made)), data_samples, teacher)
            self._note_shapes(replayed)
        result = {}
        for term in self.terms:
            value = torch.zeros((), device=self._device())
            if replayed is not None and weights[term.name] > 0:
                value = weights[term.name] * self._value(term, term.read(replayed))
            result[f'loss_sd_{term.name}'] = value
        return result

    def _replay(self, calls: list[Call]) -> list[Call]:
        assert self.teacher is not None
        family = self.family
        with lend(self.student, self.teacher, self.shared):
            return replay(
                self.teacher,
                calls,
                self.seams,
                self.observed,
                family.state(),
                self.kept,
            )

    def _value(self, term: Term, pairs: list[Pair]) -> Tensor:
        if not pairs:
            # a branch that this batch did not take
            return torch.zeros((), device=self._device())
        values = [
            term.loss(pair.student, pair.teacher, **pair.context) for pair in pairs
        ]
        return torch.stack(values).mean()

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _note_shapes(self, replayed: Replayed) -> None:
        if self.shapes:
            return
        for term in self.terms:
            pairs = term.read(replayed)
            if not pairs:
                raise ValueError(
                    f'terms.{term.name}: the site {term.site!r} gave no tensor in the '
                    "first iteration: the model's loss does not use it, or it returns "
                    'no (N, C), (N, L, C) or (N, C, H, W)'
                )
            self._try(term, pairs)
            self.shapes[term.name] = [
                'x'.join(str(size) for size in pair.student.shape) for pair in pairs
            ]
        print_log(describe(self), logger='current')

    def _try(self, term: Term, pairs: list[Pair]) -> None:
        # a term may become active only hours later
        try:
            with torch.no_grad():
                self._value(term, pairs)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f'terms.{term.name}: {type(term.loss).__name__} fails at the site '
                f'{term.site!r}: {type(error).__name__}: {error}'
            ) from error
        reached = any(pair.student.requires_grad for pair in pairs)
        if reached or not torch.is_grad_enabled():
            return
        useless = (
            f'terms.{term.name}: no gradient reaches the student at the site '
            f'{term.site!r}: it is frozen, or inside a part with activation '
            'checkpointing (with_cp)'
        )
        if term.site not in self.family.readers():
            raise ValueError(useless)
        # a default of a model that the user has frozen in part
        print_log(useless, logger='current', level=logging.WARNING)


def build_distiller(
    model: nn.Module,
    terms: TermConfigs | None = None,
    schedule: ScheduleConfig = None,
    loss_weight: float = 1.0,
) -> Distiller:
    """Find a model's family, and build the terms of its distiller.

    Args:
        model (nn.Module): The student, not its DDP wrapper.
        terms (Mapping, optional): They merge over the family's defaults.
        schedule (Mapping | str, optional): Of terms without one of their own.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.

    Returns:
        Distiller: Without a teacher yet.

    Raises:
        ValueError: If a term is wrong, or no family covers the model.
    """
    family = find_family(model)
    return Distiller(family, resolve_terms(family, terms, schedule), loss_weight)


def describe(distiller: Distiller) -> str:
    """Return a table of what is distilled, and what the teacher costs."""
    table = Table('term', 'site', 'loss', 'weight', 'schedule', 'tensors', box=ASCII)
    for term in distiller.terms:
        table.add_row(
            term.name,
            term.site,
            type(term.loss).__name__,
            f'{distiller.loss_weight * term.weight:g}',
            term.schedule.type,
            ' '.join(distiller.shapes.get(term.name, [])),
        )
    parameters, size = cost_of(distiller.student)
    console = Console(width=110, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    skipped = [
        f'Not distilled: {name}: {why}.\n'
        for name, why in distiller.family.skipped().items()
    ]
    return (
        f'Self-distillation of {type(distiller.student).__name__} '
        f'({distiller.family.name}):\n{capture.get()}'
        f'{"".join(skipped)}'
        f'The teacher holds {parameters / 1e6:.2f} M parameters, {size:.1f} MiB, and '
        'no gradients or optimizer state.'
    )


def _mode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
