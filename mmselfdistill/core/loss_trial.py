"""The trial of a loss: can it be computed, can it teach, and what does it keep?"""

from __future__ import annotations

import copy
import inspect
import logging
from dataclasses import replace
from typing import Any, Collection, Sequence

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.core.attributes import (
    BASE,
    GENERATORS,
    are_equal,
    copy_of,
    is_kept,
)
from mmselfdistill.core.handed import are_alike
from mmselfdistill.core.pairs import Pair
from mmselfdistill.core.streams import forked_rng
from mmselfdistill.core.teacher import tensors_of
from mmselfdistill.core.terms import Term
from mmselfdistill.core.unmoved import Spare
from mmselfdistill.losses.common import reduced


def try_loss(term: Term, pairs: Sequence[Pair]) -> None:
    """Compute the loss of a term once, and leave it and all generators as they were.

    Args:
        term (Term): The term.
        pairs (Sequence[Pair]): What it compares in the first iteration.

    Raises:
        ValueError: If the loss fails, is NaN, has no gradient, stays 0 whatever the
            student returns, works in place, or makes a weight or a buffer.
    """
    tried = _with_copied_loss(term)
    own = [vars(module) for module in term.loss.modules()]
    before = own if tried is not term else [*map(_as_it_is, own)]
    names = tensors_of(term.loss).keys()
    # a loss may draw numbers
    with forked_rng(), Spare().held(tried.loss.modules()):
        _compute(tried, pairs)
        _check_made(term, tensors_of(tried.loss).keys() - names)
    _warn_of_kept(term, before, [vars(m) for m in tried.loss.modules()])
    if tried is term:
        for attributes, held in zip(own, before):
            attributes.clear()
            attributes.update(held)


def _with_copied_loss(term: Term) -> Term:
    """Return a term with a copy of its loss, or the term, if that cannot be copied.

    A loss may keep what it has seen, and the numbers of a trial are made up.
    """
    try:
        return replace(term, loss=copy.deepcopy(term.loss))
    except Exception:
        return term


def _as_it_is(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return what a module holds, with copies of numbers and tensors."""
    held = dict(attributes)
    for name, value in held.items():
        if name not in BASE and is_kept(value):
            is_tensor = isinstance(value, Tensor)
            held[name] = value.detach().clone() if is_tensor else copy_of(value)
    return held


def _compute(term: Term, pairs: Sequence[Pair]) -> None:
    """Compute the loss of a term, of what it is given and of other numbers.

    Raises:
        ValueError: If it fails, is NaN, has no gradient, or stays 0 whatever the
            student returns.
    """
    site, loss = term.site.name, type(term.loss).__name__
    trains = torch.is_grad_enabled()
    try:
        with torch.no_grad():
            tried = [
                replace(p, student=p.student.clone(), teacher=p.teacher.clone())
                for p in pairs
            ]
            for each in tried:
                reduced(term.divergence(each), each.weight, each.norm)
            changes = any(p.student._version or p.teacher._version for p in tried)
            is_nan = any(_stays_nan(term, each) for each in pairs)
            is_zero = all(_stays_zero(term, each) for each in pairs)
        teaches = not trains or any(_has_gradient(term, each) for each in pairs)
    except DEVICE_ERRORS:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f'terms.{term.name}: {loss} fails at the site {site!r}: '
            f'{type(error).__name__}: {error}'
        ) from error
    if changes:
        raise ValueError(
            f'terms.{term.name}: {loss} changes the tensors that it is given in place: '
            'other terms, and the backward pass, need them as they were'
        )
    if is_nan:
        raise ValueError(f'terms.{term.name}: {loss} is NaN at the site {site!r}')
    if not teaches:
        raise ValueError(
            f'terms.{term.name}: what {loss} returns at the site {site!r} has no '
            'gradient: it trains nothing'
        )
    if is_zero:
        shapes = [tuple(each.student.shape) for each in pairs]
        raise ValueError(
            f'terms.{term.name}: {loss} is 0 at the site {site!r}, whatever the '
            f'student returns: it has nothing to compare in tensors of {shapes}'
        )


def _others(pair: Pair) -> tuple[Pair, Pair]:
    """Return a pair whose student is another, and one whose teacher is sure besides.

    It may become so: a loss may have nothing to say of one that is not.
    """
    student = pair.student.detach()
    # no random number: the student's stream is not moved
    ramp = torch.linspace(-1, 1, student.numel(), device=student.device)
    other = replace(pair, student=student + ramp.view_as(student).to(student))
    decided = torch.full_like(pair.teacher, -100.0)
    decided[:, :1] = 100.0
    return other, replace(other, teacher=decided)


def _stays_nan(term: Term, pair: Pair) -> bool:
    # it may be so where both sides are equal alone
    given = replace(pair, student=pair.student.clone())
    values = [term.divergence(each) for each in (given, *_others(pair))]
    return all(bool(each.isnan().any()) for each in values)


def _stays_zero(term: Term, pair: Pair) -> bool:
    values = [term.divergence(each) for each in _others(pair)]
    return pair.student.numel() > 0 and not any(bool(each.any()) for each in values)


def _has_gradient(term: Term, pair: Pair) -> bool:
    # nothing is seen of it where there is nothing
    if not pair.student.numel():
        return True
    for each in (pair, *_others(pair)):
        # no leaf, as in training
        student = each.student.detach().requires_grad_().clone()
        if term.divergence(replace(each, student=student)).requires_grad:
            return True
    return False


def _check_made(term: Term, made: Collection[str]) -> None:
    """See that a loss had its weights and buffers before its first call.

    Raises:
        ValueError: If not.
    """
    if made:
        raise ValueError(
            f'terms.{term.name}: {type(term.loss).__name__} makes {min(made)!r} in its '
            'first call: no optimizer would train it, and no resumed run would have '
            'it. Make it in __init__'
        )


def _warn_of_kept(
    term: Term, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> None:
    """Say what a loss keeps that no checkpoint holds."""
    kept = {
        name
        for old, new in zip(before, after)
        for name, value in new.items()
        if name not in BASE and _is_changed(old.get(name), value)
    }
    if kept:
        print_log(
            f'terms.{term.name}: {type(term.loss).__name__} changes '
            f'{", ".join(sorted(kept))} when it is called, which no checkpoint holds: '
            'in a resumed run it starts again. A buffer (register_buffer) is saved',
            logger='current',
            level=logging.WARNING,
        )


def _is_changed(before: Any, now: Any) -> bool:
    """Say whether a module holds something else, as far as that can be seen."""
    if isinstance(now, GENERATORS) or not is_kept(now):
        return False
    if isinstance(now, np.ndarray) or type(before) is not type(now):
        return not are_equal(before, now)
    return not are_alike(before, now)


def warn_of_kind(term: Term, pairs: Sequence[Pair]) -> None:
    """Say what a loss takes its numbers for, where no family says what they are."""
    kind = inspect.signature(term.loss.forward).parameters.get('kind')
    if kind and kind.default and not any(each.kind for each in pairs):
        print_log(
            f'terms.{term.name}: it is not known what the numbers at the site '
            f'{term.site.name!r} are, and {type(term.loss).__name__} takes them for '
            f'{kind.default!r}',
            logger='current',
            level=logging.WARNING,
        )
