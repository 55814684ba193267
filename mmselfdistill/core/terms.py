"""Terms of the objective: from what a user wrote to losses that can be called."""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Union

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.core.keys import check_keys
from mmselfdistill.core.loss import LOSSES, build_loss, find_loss
from mmselfdistill.core.pairs import Pair
from mmselfdistill.errors import check_bool, check_choice, check_number, nearest
from mmselfdistill.families import FAMILIES
from mmselfdistill.families.plan import Plan, Site
from mmselfdistill.families.shared import outputs_of
from mmselfdistill.schedules import Schedule, build_schedule

ScheduleConfig = Union[Mapping[str, Any], str, None]
TermConfigs = Mapping[str, Optional[Mapping[str, Any]]]

ON = ('labeled', 'unlabeled', 'both')


@dataclass
class Term:
    """One summand of the objective: a loss between both sides of a site.

    Args:
        name (str): Its name; it is logged as ``loss_sd_<name>``.
        site (Site): Where student and teacher are compared.
        loss (nn.Module): Called as ``loss(student, teacher, kind=...)``.
        weight (float): Its weight at factor 1 of the schedule.
        schedule (Schedule): The factor over time.
        on (str): Where it is computed: on images that are 'labeled', 'unlabeled', or
            'both'.
        config (dict): All of it as plain values: what a checkpoint holds.
    """

    name: str
    site: Site
    loss: nn.Module
    weight: float
    schedule: Schedule
    on: str
    config: dict[str, Any]

    def divergence(self, pair: Pair) -> Tensor:
        """Return the loss of one pair: one number a row, or one in all."""
        # of a module that is named by its path nothing is known
        kind = {'kind': pair.kind} if pair.kind else {}
        return self.loss(pair.student, pair.teacher, **kind)


def resolve_terms(
    model: nn.Module,
    plan: Plan,
    configs: TermConfigs | None,
    schedule: ScheduleConfig,
    unlabeled: bool = False,
) -> list[Term]:
    """Merge a user's terms over the defaults of a plan's sites, check and build them.

    Args:
        model (nn.Module): The student.
        plan (Plan): What its family says of it.
        configs (Mapping | None): The user's ``terms``.
        schedule (Mapping | str | None): For terms without one of their own.
        unlabeled (bool): Whether there are images without labels. Defaults to False:
            default terms that are for these alone are left out.

    Returns:
        list[Term]: The terms; at least one.

    Raises:
        ValueError: If a name, an argument or a value is wrong, no term is left,
            or no family covers the model.
    """
    defaults = default_terms(plan)
    configs = {} if configs is None else configs
    merged = merge_terms(defaults, configs)
    if not unlabeled:
        merged = _on_labeled(merged, configs)
    if not merged:
        if not plan.sites:
            raise ValueError(_uncovered(model))
        raise ValueError(
            'terms: no term is left after merging with the defaults '
            f'({", ".join(sorted(defaults))}); keep one, or set loss_weight=0 to train '
            'without distillation'
        )
    check_keys(merged)
    return [
        _build_term(name, cfg, model, plan, schedule) for name, cfg in merged.items()
    ]


def _on_labeled(
    merged: Mapping[str, dict[str, Any]], configs: TermConfigs
) -> dict[str, dict[str, Any]]:
    """Leave default terms out that are for images without labels, which are not there.

    Raises:
        ValueError: If a user wrote such a term.
    """
    others = [name for name, cfg in merged.items() if cfg.get('on') == 'unlabeled']
    for name in others:
        if name in configs:
            raise ValueError(
                f"terms.{name}.on: 'unlabeled', but there are no images without "
                'labels; give their folder, unlabeled=dict(data=...)'
            )
    return {name: cfg for name, cfg in merged.items() if name not in others}


def default_terms(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the default term of each site that has one."""
    return {site.name: dict(site.default) for site in plan.sites if site.default}


def merge_terms(
    defaults: Mapping[str, Mapping[str, Any]], configs: TermConfigs
) -> dict[str, dict[str, Any]]:
    """Merge terms key by key, as config inheritance does.

    None removes a term, and ``_delete_=True`` (of one term, or of all) starts
    clean. A term that is given another loss keeps only where it is computed, ``site``
    and ``on``: weights and arguments of one loss mean nothing to another.

    Raises:
        ValueError: If the terms, or one of them, are no dict.
    """
    if not isinstance(configs, Mapping):
        raise ValueError(
            'terms: expected a dict such as dict(logits=dict(weight=0.5)), but got '
            f'{configs!r}'
        )
    configs = dict(configs)
    start_clean = check_bool('terms._delete_', configs.pop('_delete_', False))
    merged = {} if start_clean else {name: dict(cfg) for name, cfg in defaults.items()}
    for name, cfg in configs.items():
        if not isinstance(name, str):
            raise ValueError(f'terms: expected names as keys, but got {name!r}')
        if cfg is None:
            if name not in defaults:
                choices = nearest(name, defaults)
                raise ValueError(f'terms.{name}: there is no such term; {choices}')
            merged.pop(name, None)
            continue
        if not isinstance(cfg, Mapping):
            raise ValueError(
                f'terms.{name}: expected a dict, or None to remove it, but got {cfg!r}'
            )
        cfg = _with_name_of_type(dict(cfg))
        alone = check_bool(f'terms.{name}._delete_', cfg.pop('_delete_', False))
        base = {} if alone else merged.get(name, {})
        if cfg.get('type', base.get('type')) != base.get('type'):
            base = {key: base[key] for key in ('site', 'on') if key in base}
        merged[name] = {**base, **cfg}
    return merged


def _with_name_of_type(cfg: dict[str, Any]) -> dict[str, Any]:
    # a class, as of Python-style configs, and a dotted path are the same loss
    kind = find_loss(cfg.get('type'))
    if isinstance(kind, type) and MODELS.get(kind.__name__) is kind:
        cfg['type'] = kind.__name__
    return cfg


def _build_term(
    name: str,
    cfg: dict[str, Any],
    model: nn.Module,
    plan: Plan,
    schedule: ScheduleConfig,
) -> Term:
    where = f'terms.{name}'
    # an int and a float of the same value are one setting
    weight = check_number(f'{where}.weight', cfg.get('weight', 1.0), 0.0)
    site = cfg.get('site', name)
    time = cfg.get('schedule', schedule)
    if not isinstance(site, str):
        raise ValueError(
            f'{where}.site: expected one name of a site or module, but got {site!r}; '
            'several sites are several terms'
        )
    if 'type' not in cfg:
        choices = nearest(name, default_terms(plan))
        why = f'no default term has this name; {choices}'
        if name in default_terms(plan):
            why = '_delete_ has taken out the default, and its loss with it'
        raise ValueError(
            f'{where}: {why}. A term of your own needs the type of its loss: {LOSSES}'
        )
    loss = build_loss(where, cfg)
    on = check_choice(f'{where}.on', cfg.get('on', 'both'), ON)
    plain = {**cfg, 'site': site, 'weight': weight, 'schedule': time, 'on': on}
    return Term(
        name=name,
        site=_find_site(where, site, model, plan),
        loss=loss,
        weight=weight,
        schedule=build_schedule(time, f'{where}.schedule'),
        on=on,
        config=_plain(plain),
    )


def _find_site(where: str, name: str, model: nn.Module, plan: Plan) -> Site:
    site = plan.site(name)
    if site is not None:
        return site
    paths = [path for path, _ in model.named_modules() if path]
    if name in paths:
        return outputs_of(f'{name}.forward', name)
    if not plan.sites and '.' not in name:
        raise ValueError(f'{where}.site: unknown site {name!r}. {_uncovered(model)}')
    # the names of a large model's modules would fill the screen
    valid = [each.name for each in plan.sites]
    valid += [path for path in paths if path.count('.') < 2]
    raise ValueError(
        f'{where}.site: unknown site {name!r} of a {plan.name} '
        f'({type(model).__name__}); {nearest(name, valid)}'
    )


def _uncovered(model: nn.Module) -> str:
    children = ', '.join(repr(name) for name, _ in model.named_children())
    kinds = ', '.join(family.name for family in FAMILIES)
    return (
        f'self_distill: no model family covers {type(model).__name__}. Looked '
        f'for: {kinds}; the model has the parts {children}. Name modules by their '
        "path, such as terms=dict(mine=dict(type='PKDLoss', site='backbone.layer3')), "
        'or put a subclass of mmselfdistill.families.Family into '
        'mmselfdistill.families.FAMILIES'
    )


def _plain(value: Any) -> Any:
    """Turn configs into dicts, lists, numbers and strings: safe in a checkpoint."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (numbers.Number, str)) or value is None:
        return value
    if isinstance(value, type):
        # as MMEngine writes it into a config that it dumps
        return f'{value.__module__}.{value.__name__}'
    # an object's address is another one in each process
    return re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))


def differences(given: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Say how the terms of this run differ from those in a checkpoint."""
    found = []
    for name in sorted({*given, *saved}):
        ours, theirs = given.get(name, {}), saved.get(name, {})
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                found.append(
                    f'terms.{name}.{key}: {theirs.get(key)!r} in the checkpoint, '
                    f'{ours.get(key)!r} now'
                )
    return found
