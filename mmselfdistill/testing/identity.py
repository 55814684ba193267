"""Compare a model with a teacher that is a copy of it."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.comparison import Comparison
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import copy_into, make_teacher, still
from mmselfdistill.schedules import Schedule
from mmselfdistill.testing.losses import loss_of, own_losses, terms_of, values_of

# of a term at equal weights, to its value at others. PyTorch multiplies matrices in
# another order where a weight has no gradient: where that adds up to more, the term has
# to be exactly 0 with the student's weights frozen too
TOLERANCE = 1e-6


@dataclass
class Check:
    """What was found of one term.

    Args:
        tensors (list[str]): Shapes of the tensors that are compared.
        equal (float): The loss at equal weights.
        frozen (float): The same with the student's weights frozen, as its teacher's.
        apart (float): The loss with the teacher's weights disturbed. Defaults to 0.0.
        gradient (float): Sum of the gradient's sizes at the student, then. Defaults to
            0.0.
        backbone (float): The part of it that is at the backbone. Defaults to 0.0.
    """

    tensors: list[str]
    equal: float
    frozen: float
    apart: float = 0.0
    gradient: float = 0.0
    backbone: float = 0.0

    def problem(self) -> str:
        """Return what is wrong, or ''."""
        limit = TOLERANCE if self.frozen else 10 * TOLERANCE
        if self.apart == 0:
            return 'it is 0 at any weights'
        if not self.apart > 0:
            return f'it is {self.apart:.1e} at other weights'
        if not self.equal <= limit * self.apart:
            values = f'{self.equal:.1e} at equal weights, {self.apart:.1e} at others'
            return f'it is not 0 where it has to be: {values}'
        if not 0 < self.gradient < float('inf'):
            return f'its gradient at the student is {self.gradient}'
        return ''


@dataclass
class Report:
    """What :func:`check_identity` found.

    Args:
        family (str): The model's family.
        terms (dict[str, Check]): By name.
        silent (list[str]): Parts of the teacher whose weights move no term: heads that
            are not compared, as a rule.
        skipped (dict[str, str]): What the plan leaves out, and why.
        found (list[str]): Modules that are repeated though no plan names them.
        problems (list[str]): All that is wrong; empty for a model that is distilled
            correctly.
        unlabeled (dict[str, Check]): Terms on images without labels, where these were
            tried.
    """

    family: str
    terms: dict[str, Check]
    silent: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unlabeled: dict[str, Check] = field(default_factory=dict)

    def tried(self) -> dict[str, Check]:
        """Return the terms on all images: empty where every weight is 0."""
        others = {f'{name}, no labels': each for name, each in self.unlabeled.items()}
        return {**self.terms, **others}


def check_identity(model: nn.Module, batch: dict[str, Any], **settings: Any) -> Report:
    """Check that a model is distilled correctly, with a teacher that is a copy of it.

    Terms of weight 0 are left out, and so are schedules: each term counts at its whole
    weight.

    - At equal weights, with dropout and statistics off in the student too, every term
      is 0.
    - With the teacher's weights disturbed every term is positive, its gradient reaches
      the student, and one of them reaches the backbone.
    - Each part of the teacher, disturbed by itself, moves a term, or is listed.
    - The model's own losses of two iterations are bitwise those without distillation;
      no parameter and no buffer of the teacher changes.

    Args:
        model (nn.Module): The student. Its weights are as before afterwards, its
            dropout and norms are off.
        batch (dict): The keyword arguments of its ``forward`` in mode 'loss'.
        **settings: Of :func:`build_distiller`: ``terms``, ``loss_weight``, ``seams``,
            ``unlabeled``.

    Returns:
        Report: What was found, and in ``problems`` what is wrong. Of a model whose
        terms are all for images without labels: nothing.

    Raises:
        ValueError: If a term is wrong, or no family covers the model.
        RuntimeError: If the teacher cannot repeat what the model does.
    """
    still(model)
    distiller = build_distiller(model, **settings)
    every = [term.name for term in distiller.terms]
    compare_all(distiller)
    kept = [term.name for term in distiller.terms]
    idle = {name: 'its weight is 0' for name in every if name not in kept}
    if not distiller.terms:
        return Report(distiller.labeled.plan.name, {}, skipped=idle)
    plain = own_losses_twice(copy.deepcopy(model), batch)
    teacher = distiller.teacher = make_teacher(model)
    before = {key: t.clone() for key, t in teacher.state_dict().items()}
    distiller.attach()
    try:
        report = _compared(distiller, batch, plain)
        report.skipped.update(idle)
        report.problems += [
            f'a replay changed {key} of the teacher'
            for key, tensor in teacher.state_dict().items()
            # one that is registered in a forward was not there
            if key in before and not torch.equal(before[key], tensor)
        ]
        disturb(teacher)
        at_other_weights(model, batch, report.terms)
        copy_into(teacher, model)
        report.silent = _silent_parts(distiller, batch)
    finally:
        distiller.detach()
    report.problems += [
        f'{name}: {check.problem()}'
        for name, check in report.terms.items()
        if check.problem()
    ]
    trained = any(p.requires_grad for _, p in _of_backbone(model))
    if trained and not sum(check.backbone for check in report.terms.values()) > 0:
        report.problems.append('no term has a gradient at the backbone')
    return report


def _compared(
    distiller: Distiller, batch: dict[str, Any], plain: list[Tensor]
) -> Report:
    stock, checks = at_equal_weights(distiller.labeled, batch)
    plan, found = distiller.labeled.plan, list(distiller.labeled.found)
    report = Report(plan.name, checks, skipped=dict(plan.skipped), found=found)
    if not same(plain, stock):
        report.problems.append('distillation changes the losses of the model itself')
    return report


def at_equal_weights(
    comparison: Comparison, batch: dict[str, Any], end: str = ''
) -> tuple[list[Tensor], dict[str, Check]]:
    """Return the model's own losses twice, and the terms whose keys end so, by name."""
    losses = loss_of(comparison.student, batch)
    equal, own = values_of(losses, end), own_losses(losses)
    del losses  # and its graph: large models have no room for two
    with frozen_weights(comparison.student):
        losses = loss_of(comparison.student, batch)
    frozen = values_of(losses, end)
    return own + own_losses(losses), {
        name: Check(comparison.shapes[name], abs(value), abs(frozen[name]))
        for name, value in equal.items()
    }


def own_losses_twice(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Return the losses of a model without a teacher, as `at_equal_weights` runs it.

    The second time shows what the first left behind.
    """
    own = own_losses(loss_of(model, batch))
    with frozen_weights(model):
        return own + own_losses(loss_of(model, batch))


def same(plain: list[Tensor], own: list[Tensor]) -> bool:
    """Say whether losses are bitwise the same, and as many."""
    return len(plain) == len(own) and all(map(torch.equal, plain, own))


def at_other_weights(
    student: nn.Module, batch: dict[str, Any], checks: dict[str, Check], end: str = ''
) -> None:
    """Note what the terms are with a teacher that was disturbed."""
    apart = terms_of(loss_of(student, batch), end)
    for name, check in checks.items():
        check.apart = float(apart[name].detach())
        check.gradient, check.backbone = gradients_of(student, apart[name])


def _silent_parts(distiller: Distiller, batch: dict[str, Any]) -> list[str]:
    """Return the parts of the teacher whose weights move no term."""
    student, teacher = distiller.student, distiller.teacher
    assert teacher is not None

    def values() -> dict[str, float]:
        with torch.no_grad():
            return values_of(loss_of(student, batch))

    equal, silent = values(), []
    children = dict(teacher.named_children())
    roi_head = children.pop('roi_head', nn.Module())
    children.update({f'roi_head.{k}': v for k, v in roi_head.named_children()})
    for name, part in children.items():
        if next(part.parameters(), None) is None:
            continue
        disturb(part)
        if values() == equal:
            silent.append(name)
        copy_into(teacher, student)
    return silent


def always(distiller: Distiller) -> None:
    """Let terms count at any time, by copies of them."""
    constant = Schedule()
    distiller.terms = [replace(term, schedule=constant) for term in distiller.terms]


def compare_all(distiller: Distiller) -> None:
    """Let terms count always, and where a teacher is not sure: random weights are not.

    Those of weight 0 are left out.
    """
    always(distiller)
    distiller.terms = [*filter(distiller.whole_weight, distiller.terms)]
    for term in distiller.terms:
        loss: Any = term.loss
        if hasattr(loss, 'threshold'):
            loss.threshold = 0.0


@contextmanager
def frozen_weights(student: nn.Module) -> Iterator[None]:
    """Freeze the student's weights for a while, as its teacher's are.

    Both sides then multiply matrices in the same order.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    student.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def disturb(teacher: nn.Module) -> None:
    """Add noise to each parameter: a tenth of its spread, and some to constants."""
    for parameter in teacher.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            spread = parameter.std(unbiased=False)
            parameter.add_((0.1 * spread + 0.01) * torch.randn_like(parameter))


def gradients_of(student: nn.Module, value: Any) -> tuple[float, float]:
    """Return the sum of the sizes of a gradient, and the part at the backbone."""
    student.zero_grad()
    if value.requires_grad:
        # not autograd.grad: models with checkpoints in them refuse it
        value.backward(retain_graph=True)
    sizes = {
        name: float(parameter.grad.abs().sum())
        for name, parameter in student.named_parameters()
        if parameter.grad is not None
    }
    student.zero_grad()
    backbone = sum(sizes[name] for name, _ in _of_backbone(student) if name in sizes)
    return sum(sizes.values()), backbone


def _of_backbone(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    # SAN's is called an image encoder
    names = ('backbone', 'image_encoder')
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if any(each in name for each in names)
    ]
