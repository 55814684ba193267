"""What is tried with one model of a zoo: stock step, identity, a few steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Callable, Mapping

import torch

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import Average, make_teacher
from mmselfdistill.testing import check_identity
from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.losses import loss_of, terms_of
from mmselfdistill.testing.models import FEW
from mmselfdistill.testing.unlabeled import check_unlabeled
from mmselfdistill.zoo import read_config

STEPS = 3


def check_config(
    key: str, save: Callable[[dict[str, Any]], None], few: Mapping[str, int] = FEW
) -> None:
    """Try one config, and save what is known after each part.

    Args:
        key (str): The config's name in its zoo: `mmdet::fcos/fcos_...`.
        save (Callable): Called with the record whenever it grows.
        few (Mapping): The largest value of some keys of the model. Defaults to those
            that cost time and change nothing else.

    Raises:
        RuntimeError: If the model is not distilled correctly.
    """
    record: dict[str, Any] = dict(part='stock')
    save(record)
    builder = Builder(read_config(key, None), few)
    size = builder.first_size()
    model, batch = builder.calibrated(size)
    keys = list(model.state_dict())
    record.update(part='plugin', model=type(model).__name__)
    save(record)
    report = check_identity(model, batch)
    record.update(family=report.family, skipped=report.skipped, silent=report.silent)
    record.update(found=report.found)
    record['terms'] = {name: asdict(check) for name, check in report.terms.items()}
    save(record)
    if report.problems:
        raise RuntimeError('; '.join(report.problems))
    record['unlabeled'] = on_unlabeled(builder, model, batch, size)
    save(record)
    distiller = build_distiller(model, schedule='constant')
    distiller.teacher = make_teacher(model)
    check_steps(distiller, batch, record)
    if list(model.state_dict()) != keys:
        raise RuntimeError('the keys of the state_dict have changed')
    record['part'] = 'done'
    save(record)


def on_unlabeled(
    builder: Builder, model: Any, batch: dict[str, Any], size: int
) -> dict[str, Any]:
    """Try images without labels, with no setting of the model's own.

    Returns:
        dict: The terms that apply there, or why it does not run on such images.

    Raises:
        RuntimeError: If it is not distilled correctly.
    """
    try:
        raw = builder.raw_unlabeled(model, size)
        return dict(terms=[*check_unlabeled(model, raw, batch)])
    except ValueError as error:  # it does not run without labels
        return dict(error=f'{type(error).__name__}: {error}'[:300])


def check_steps(
    distiller: Distiller, batch: dict[str, Any], record: dict[str, Any]
) -> None:
    """Train a few steps with a running average as the teacher.

    Raises:
        RuntimeError: If a term is not finite, or none is ever positive.
    """
    student: Any = distiller.student
    teacher = distiller.teacher
    assert teacher is not None
    student.train()
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=1e-4
    )
    distiller.attach()
    for step in range(STEPS):
        losses = loss_of(student, batch, seed=step)
        values = {name: float(value) for name, value in terms_of(losses).items()}
        for name, value in values.items():
            record['terms'][name].setdefault('steps', []).append(value)
        if not all(abs(value) < float('inf') for value in values.values()):
            raise RuntimeError(f'not finite in step {step}: {values}')
        optimizer.zero_grad()
        student.parse_losses(losses)[0].backward()
        optimizer.step()
        Average(teacher, student).update((1 + step) / (10 + step))
    distiller.detach()
    if not any(value > 0 for value in values.values()):
        raise RuntimeError(f'no term is positive: {values}')
