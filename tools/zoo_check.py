"""What is tried with one model of a zoo: stock step, identity, a few steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from mmengine.config import Config
from torch import Tensor, nn
from zoo_inputs import make_batch  # type: ignore[import-not-found]
from zoo_models import (  # type: ignore[import-not-found]
    build,
    calibrate,
    enter,
    prepared,
    sizes_of,
    wants_masks,
)

from mmselfdistill.distiller import Distiller, build_distiller
from mmselfdistill.teacher import (
    average_into,
    copy_into,
    make_teacher,
    still,
)

STEPS = 3
# of a term at equal weights. PyTorch multiplies matrices in another order where a
# weight has no gradient: where that adds up to more, the term has to be exactly 0 with
# the student's weights frozen too
TOLERANCE = 1e-6


def check_config(zoo: str, root: Path, name: str, save: Callable[[Any], None]) -> None:
    """Try one config, and save what is known after each part.

    Args:
        zoo (str): 'mmdet' or 'mmseg'.
        root (Path): The folder of the zoo's configs.
        name (str): The config, relative to it.
        save (Callable): Called with the record whenever it grows.
    """
    record: dict[str, Any] = dict(part='stock')
    save(record)
    whole = Config.fromfile(root / name)
    cfg, masks = prepared(whole.model, root), wants_masks(whole)
    enter(zoo, cfg)
    size, keys = stock_step(zoo, cfg, masks)
    model = build(zoo, cfg, size)
    record.update(part='plugin', model=type(model).__name__)
    save(record)
    batch = make_batch(zoo, model, cfg, size, masks)
    calibrate(model, batch)
    distiller = build_distiller(model)
    distiller.teacher = make_teacher(model)
    record['family'] = distiller.family.name
    record['skipped'] = distiller.family.skipped()
    save(record)
    check_identity(distiller, batch, record)
    save(record)
    record['silent'] = silent_parts(distiller, batch)
    save(record)
    check_steps(distiller, batch, record)
    if list(model.state_dict()) != keys:
        raise RuntimeError('the keys of the state_dict have changed')
    record['part'] = 'done'
    save(record)


def stock_step(zoo: str, cfg: Any, masks: bool) -> tuple[int, list[str]]:
    """Make a step without the plugin.

    Returns:
        tuple: The size of images that the model takes, and the keys of its
        state_dict after the step.
    """
    error: Exception | None = None
    for size in sizes_of(cfg):
        model = build(zoo, cfg, size)
        model.train()
        try:
            batch = make_batch(zoo, model, cfg, size, masks)
            loss: Any = total(model, loss_of(model, batch))
            loss.backward()
        except Exception as this:
            error = this
        else:
            return size, list(model.state_dict())
    assert error is not None
    raise error


def loss_of(model: nn.Module, batch: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return the loss dict of a batch, which models may change: give a copy."""
    torch.manual_seed(seed)
    losses: dict[str, Any] = model(**copy.deepcopy(batch), mode='loss')
    return losses


def total(model: Any, losses: dict[str, Any]) -> Tensor:
    """Return the sum of the losses."""
    value: Tensor = model.parse_losses(losses)[0]
    return value


def ours(losses: dict[str, Any]) -> dict[str, Tensor]:
    """Return the terms of a loss dict by name."""
    prefix = 'loss_sd_'
    return {k[len(prefix) :]: v for k, v in losses.items() if k.startswith(prefix)}


def check_identity(
    distiller: Distiller, batch: dict[str, Any], record: dict[str, Any]
) -> None:
    """Compare the student with a teacher that is equal, then with another.

    Raises:
        RuntimeError: If a term is not 0 at equal weights, does not teach the
            student, or if the plugin changes the stock losses or the teacher.
    """
    student, teacher = distiller.student, distiller.teacher
    assert teacher is not None
    still(student)
    # a copy: a loss may count what it has seen
    plain = list(leaves(loss_of(copy.deepcopy(student), batch)))
    before = {key: tensor.clone() for key, tensor in teacher.named_buffers()}
    distiller.attach()
    losses = loss_of(student, batch)
    equal = {name: abs(float(value)) for name, value in ours(losses).items()}
    stock = list(leaves({k: v for k, v in losses.items() if 'loss_sd_' not in k}))
    del losses  # and its graph: large models have no room for two
    same = all(torch.equal(a, b) for a, b in zip(plain, stock))
    frozen = frozen_terms(student, batch)
    disturb(teacher)
    apart = ours(loss_of(student, batch))
    record['terms'] = {
        term.name: dict(
            loss=type(term.loss).__name__,
            tensors=distiller.shapes[term.name],
            equal=equal[term.name],
            apart=abs(float(apart[term.name])),
            frozen=abs(float(frozen[term.name])),
            **gradients(student, apart[term.name]),
        )
        for term in distiller.terms
    }
    distiller.detach()
    if not same or len(plain) != len(stock):
        raise RuntimeError('the plugin changes the losses of the model itself')
    for key, buffer in teacher.named_buffers():
        if not torch.equal(before[key], buffer):
            raise RuntimeError(f'a replay changed the buffer {key} of the teacher')
    copy_into(teacher, student)
    for name, term in record['terms'].items():
        check_term(name, term)
    trained = any(p.requires_grad for _, p in _of_backbone(student))
    if trained and not sum(term['backbone'] for term in record['terms'].values()) > 0:
        raise RuntimeError('no term has a gradient at the backbone')


def silent_parts(distiller: Distiller, batch: dict[str, Any]) -> list[str]:
    """Return the parts of the teacher whose weights move no term.

    That is as it should be of a head that is not compared. Of a part in between it
    says that the teacher's answers come from the student's features.
    """
    student, teacher = distiller.student, distiller.teacher
    assert teacher is not None
    distiller.attach()

    def terms() -> dict[str, float]:
        with torch.no_grad():
            return {k: float(v) for k, v in ours(loss_of(student, batch)).items()}

    equal, silent = terms(), []
    children = dict(teacher.named_children())
    roi_head = children.pop('roi_head', nn.Module())
    children.update({f'roi_head.{k}': v for k, v in roi_head.named_children()})
    for name, part in children.items():
        if next(part.parameters(), None) is None:
            continue
        disturb(part)
        if terms() == equal:
            silent.append(name)
        copy_into(teacher, student)
    distiller.detach()
    return silent


def frozen_terms(student: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the terms with the student's weights frozen, as its teacher's are.

    Both sides then multiply matrices in the same order.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    student.requires_grad_(False)
    with torch.no_grad():
        terms = ours(loss_of(student, batch))
    for parameter in trained:
        parameter.requires_grad_(True)
    return terms


def check_term(name: str, term: dict[str, Any]) -> None:
    """Raise RuntimeError if a term is not as it has to be."""
    scale = f'{term["equal"]:.1e} at equal weights, {term["apart"]:.1e} at others'
    rounded = term['frozen'] == 0 and term['equal'] <= 10 * TOLERANCE * term['apart']
    if not (term['equal'] <= TOLERANCE * term['apart'] or rounded):
        raise RuntimeError(f'{name}: not zero at equal weights: {scale}')
    if not term['apart'] > 0:
        raise RuntimeError(f'{name}: zero at any weights')
    if not 0 < term['gradient'] < float('inf'):
        raise RuntimeError(f'{name}: the gradient at the student is {term["gradient"]}')


def leaves(losses: Any) -> Iterator[Tensor]:
    """Yield the tensors of a loss dict."""
    for value in losses.values():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            yield torch.as_tensor(each).detach()


@torch.no_grad()
def disturb(teacher: nn.Module) -> None:
    """Add noise to each parameter: a tenth of its spread, and some to constants."""
    for parameter in teacher.parameters():
        if parameter.is_floating_point():
            spread = parameter.std(unbiased=False)
            parameter.add_((0.1 * spread + 0.01) * torch.randn_like(parameter))


def gradients(student: nn.Module, value: Any) -> dict[str, Any]:
    """Return the size of a term's gradient, in all and at the backbone."""
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
    return dict(
        gradient=sum(sizes.values()),
        backbone=sum(sizes[name] for name, _ in _of_backbone(student) if name in sizes),
    )


def _of_backbone(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    # SAN's is called an image encoder
    names = ('backbone', 'image_encoder')
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if any(each in name for each in names)
    ]


def check_steps(
    distiller: Distiller, batch: dict[str, Any], record: dict[str, Any]
) -> None:
    """Train a few steps with a running average as the teacher.

    Raises:
        RuntimeError: If a term is not finite, or none is ever positive.
    """
    student, teacher = distiller.student, distiller.teacher
    assert teacher is not None
    student.train()
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=1e-4
    )
    distiller.attach()
    for step in range(STEPS):
        losses = loss_of(student, batch, seed=step)
        values = {name: float(value) for name, value in ours(losses).items()}
        for name, value in values.items():
            record['terms'][name].setdefault('steps', []).append(value)
        if not all(abs(value) < float('inf') for value in values.values()):
            raise RuntimeError(f'not finite in step {step}: {values}')
        optimizer.zero_grad()
        loss: Any = total(student, losses)
        loss.backward()
        optimizer.step()
        average_into(teacher, student, (1 + step) / (10 + step))
    distiller.detach()
    if not any(value > 0 for value in values.values()):
        raise RuntimeError(f'no term is positive: {values}')
