"""What is tried with one model of a zoo: stock step, identity, a few steps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import torch
from mmengine.config import Config
from torch import Tensor

from mmselfdistill.core.distiller import Distiller, build_distiller
from mmselfdistill.core.teacher import average_into, make_teacher
from mmselfdistill.families import find_plan
from mmselfdistill.testing import check_identity
from mmselfdistill.testing.identity import loss_of, terms_of
from mmselfdistill.testing.inputs import make_batch, raw_batch
from mmselfdistill.testing.models import (
    build,
    calibrate,
    enter,
    prepared,
    sizes_of,
    wants_masks,
)
from mmselfdistill.testing.unlabeled import check_unlabeled

STEPS = 3


def check_config(zoo: str, root: Path, name: str, save: Callable[[Any], None]) -> None:
    """Try one config, and save what is known after each part.

    Args:
        zoo (str): 'mmdet' or 'mmseg'.
        root (Path): The folder of the zoo's configs.
        name (str): The config, relative to it.
        save (Callable): Called with the record whenever it grows.

    Raises:
        RuntimeError: If the model is not distilled truly.
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
    report = check_identity(model, batch)
    record.update(family=report.family, skipped=report.skipped, silent=report.silent)
    record.update(found=report.found)
    record['terms'] = {name: asdict(check) for name, check in report.terms.items()}
    save(record)
    if report.problems:
        raise RuntimeError('; '.join(report.problems))
    record['unlabeled'] = on_unlabeled(zoo, model, cfg, size, batch)
    save(record)
    distiller = build_distiller(model, schedule='constant')
    distiller.teacher = make_teacher(model)
    check_steps(distiller, batch, record)
    if list(model.state_dict()) != keys:
        raise RuntimeError('the keys of the state_dict have changed')
    record['part'] = 'done'
    save(record)


def on_unlabeled(
    zoo: str, model: Any, cfg: Any, size: int, batch: dict[str, Any]
) -> dict[str, Any]:
    """Try images without labels, with no setting of the model's own.

    Returns:
        dict: The terms that apply there, or the error.
    """
    # of a model that holds the one that it trains, that one takes images
    inner: Any = model.get_submodule(find_plan(model).inner)
    try:
        raw = raw_batch(zoo, inner, cfg, size, masks=False)
        return dict(terms=[*check_unlabeled(model, raw, batch)])
    except Exception as error:
        return dict(error=f'{type(error).__name__}: {error}'[:300])


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


def total(model: Any, losses: dict[str, Any]) -> Tensor:
    """Return the sum of the losses."""
    value: Tensor = model.parse_losses(losses)[0]
    return value


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
        values = {name: float(value) for name, value in terms_of(losses).items()}
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
