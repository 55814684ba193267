"""A model and a user's settings to the distiller of a run."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from torch import nn

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.parts import check_sites, with_named_seams
from mmselfdistill.core.terms import ScheduleConfig, TermConfigs, resolve_terms
from mmselfdistill.core.unlabeled import Unlabeled, check_confidence
from mmselfdistill.families import find_plan
from mmselfdistill.families.plan import Seam


def build_distiller(
    model: nn.Module,
    terms: TermConfigs | None = None,
    schedule: ScheduleConfig = None,
    loss_weight: float = 1.0,
    seams: Sequence[str] = (),
    unlabeled: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Distiller:
    """Find a model's plan, and build the terms of its distiller.

    Args:
        model (nn.Module): The student, not its DDP wrapper.
        terms (Mapping, optional): They merge over the defaults of the model's sites.
        schedule (Mapping | str, optional): Of terms without one of their own.
        loss_weight (float): Multiplies all terms. Defaults to 1.0.
        seams (Sequence[str]): Paths of methods, or of modules, that the teacher has to
            repeat besides those of the plan. Defaults to ().
        unlabeled (Mapping, optional): Arguments of :class:`Unlabeled`, model and plan
            left out; with a weight of 0 it needs no others. Defaults to None: no images
            without labels.
        **settings: Of :class:`Distiller`: ``task_weight``, ``view``, ``teacher_norm``,
            ``every``, ``teacher_dtype``.

    Returns:
        Distiller: Without a teacher yet.

    Raises:
        ValueError: If a term or a seam is wrong, or no family covers the model.
    """
    plan = with_named_seams(model, find_plan(model), seams)
    built = resolve_terms(model, plan, terms, schedule, unlabeled is not None)
    if not unlabeled or unlabeled.get('weight') == 0:
        built, unlabeled = [term for term in built if term.on != 'unlabeled'], None
    sites = [term.site.on(labeled) for term in built for labeled in (True, False)]
    check_sites(model, sites)
    paths = [path for site in sites for path in site.seams]
    plan = plan.with_seams(*map(Seam, paths))
    if unlabeled is not None:
        if unlabeled.get('confidence') is not None:
            check_confidence(model, plan, built)
        settings['unlabeled'] = Unlabeled(model, plan, **unlabeled)
    return Distiller(model, plan, built, loss_weight, **settings)
