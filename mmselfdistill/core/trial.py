"""The first iteration: can every term be computed, and can it teach?"""

from __future__ import annotations

import logging
from typing import Any, Callable, Mapping, Sequence

import torch
from mmengine.logging import print_log
from torch import nn

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.comparison import Batch, Comparison
from mmselfdistill.core.loss_trial import try_loss, warn_of_kind
from mmselfdistill.core.pairs import Pair
from mmselfdistill.core.terms import Term
from mmselfdistill.families.plan import Call, Plan, Site


def first_iteration(
    comparison: Comparison,
    forward: Callable[[], Any],
    batch: Batch,
    teacher: nn.Module | None,
    terms: Sequence[Term],
    due: Sequence[Term],
) -> tuple[Any, list[Call]]:
    """Make the first forward pass, and see that everything that follows can be made.

    Args:
        comparison (Comparison): Its plan is completed.
        forward (Callable): The student's.
        batch (Batch): What it is made on.
        teacher (nn.Module | None): The teacher, or one for these checks alone.
        terms (Sequence[Term]): All terms.
        due (Sequence[Term]): Those that become active in the run.

    Returns:
        tuple: What the pass returned, and the recorded calls.

    Raises:
        RuntimeError: If the teacher cannot repeat the pass.
        ValueError: If a term cannot be computed, or none is there.
    """
    output, calls = comparison.watch(forward, batch)
    pairs = comparison.first_pairs(teacher, terms, due, calls, batch)
    _try_terms(terms, pairs, comparison, batch, calls)
    # without gradient it is not seen what depends on weights
    comparison.checked = torch.is_grad_enabled()
    return output, calls


def _try_terms(
    terms: Sequence[Term],
    pairs: Mapping[str, list[Pair]],
    comparison: Comparison,
    batch: Batch,
    calls: Sequence[Call],
) -> None:
    """Compute each term once.

    A site that images without labels do not reach is no error there, unless no term is
    left.

    Raises:
        ValueError: If a term cannot be computed, or none is there.
    """
    labeled = batch.samples is not None
    for term in terms:
        # another rank's images may reach what these do not
        elsewhere = not pairs[term.name] and comparison.shapes[term.name]
        wanted = labeled or pairs[term.name] or term.on == 'unlabeled'
        if wanted and not elsewhere:
            if not pairs[term.name]:
                raise ValueError(_nothing_there(term, batch.site(term), calls))
            # it may become active only hours later
            try_loss(term, pairs[term.name])
            _check_gradient(term, pairs[term.name], comparison.plan)
            _check_unchanged(term, comparison)
            # once, where a term is on both kinds of images
            if labeled or term.on == 'unlabeled':
                warn_of_kind(term, pairs[term.name])
    if not labeled and not any(comparison.shapes.values()):
        raise ValueError(
            f'unlabeled: no term can be computed on images without labels: '
            f'{", ".join(pairs) or "all have on=labeled"}'
        )


def _nothing_there(term: Term, site: Site, calls: Sequence[Call]) -> str:
    found = {
        f'{call.path} {[*each.shape]}'
        for call in calls
        if call.path in site.seams
        for each in tensors_in(call.output)
    }
    returned = f'. What it reads returned: {", ".join(sorted(found))}' if found else ''
    return (
        f'terms.{term.name}: the site {site.name!r} gave no tensor in the first '
        "iteration: the model's loss does not use it, or calls it without gradient "
        '(as activation checkpointing with use_reentrant=True does), or it returns '
        f'no (N, C), (N, L, C) or (N, C, H, W){returned}'
    )


def _check_gradient(term: Term, pairs: Sequence[Pair], plan: Plan) -> None:
    """See that a term can train the student.

    Where it cannot at a site of the family it is a warning: the user has frozen the
    model in part.

    Raises:
        ValueError: If no gradient reaches a module that a user named.
    """
    site = term.site.name
    if torch.is_grad_enabled() and not any(p.student.requires_grad for p in pairs):
        useless = (
            f'terms.{term.name}: no gradient reaches the student at the site {site!r}: '
            'it is frozen, or inside a part with activation checkpointing (with_cp)'
        )
        if plan.site(site) is None:
            raise ValueError(useless)
        print_log(useless, logger='current', level=logging.WARNING)


def _check_unchanged(term: Term, comparison: Comparison) -> None:
    """See that a module that a user named still has what it returned.

    Raises:
        ValueError: If what follows has changed it.
    """
    site = term.site.name
    own = comparison.plan.site(site) is None
    if own and comparison.changed.intersection(term.site.seams):
        raise ValueError(
            f'terms.{term.name}: what {site!r} returns is changed in place by what '
            'follows it, such as an activation with inplace=True: that would be '
            'compared. Name a module that what changes it is in, or set inplace=False'
        )
