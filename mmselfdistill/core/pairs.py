"""Pair what the student made at a site with what the teacher made."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.core.streams import at_precision, autocast_to
from mmselfdistill.families.plan import Rows, Side, Site

# what reading a site raises if the model returned something else
READ_ERRORS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Pair:
    """One tensor as the student and as the teacher made it.

    Args:
        student (Tensor): With gradient.
        teacher (Tensor): Same shape, without.
        kind (str): What its numbers are: see :class:`Reading`.
        weight (Tensor, optional): How much each row counts. Defaults to None: 1.
        norm (Tensor, optional): What the weighted sum is divided by. Defaults to None:
            the sum of the weights, or the number of rows.
    """

    student: Tensor
    teacher: Tensor
    kind: str = ''
    weight: Tensor | None = None
    norm: Tensor | None = None

    def norm_of(self, divergence: Tensor) -> Tensor:
        """Return what the sum of a divergence is divided by, as a scalar."""
        if self.norm is not None:
            return self.norm
        if self.weight is not None:
            return self.weight.float().sum()
        return torch.full((), divergence.numel(), device=divergence.device)


def first_pair(
    name: str,
    site: Site,
    student: Side,
    teacher: Side,
    dtype: torch.dtype | None = None,
) -> list[Pair]:
    """Make the pairs of a term for the first time: see :func:`pair`.

    Raises:
        ValueError: If what the model returned is not what the site reads.
    """
    try:
        return pair(site, student, teacher, dtype)
    except DEVICE_ERRORS:
        raise
    except READ_ERRORS as error:
        outputs = {
            path: type(call.output).__name__
            for path in site.seams
            for call in student.of(path)
        }
        returned = ', '.join(f'{path} ({kind})' for path, kind in outputs.items())
        raise ValueError(
            f'terms.{name}: the site {site.name!r} cannot be read of what '
            f'{returned or "the model"} returned: {type(error).__name__}: {error}. '
            f'Leave the term out, terms=dict({name}=None), or say in a family of your '
            'own how the model is read'
        ) from error


def pair(
    site: Site, student: Side, teacher: Side, dtype: torch.dtype | None = None
) -> list[Pair]:
    """Read a site on both sides, with the rows that the teacher's side says count.

    Args:
        site (Site): What is read.
        student (Side): With gradient.
        teacher (Side): Without.
        dtype (torch.dtype, optional): To which the teacher's calls were autocast: a
            site may compute masks. Defaults to None: as the student's are.

    Raises:
        RuntimeError: If the two sides differ in number or shape of tensors.
    """
    as_theirs = at_precision(autocast_to(dtype)) if dtype else nullcontext()
    with torch.no_grad(), as_theirs:
        theirs = site.read(teacher)
        rows = site.weigh(teacher) if site.weigh else [Rows()] * len(theirs)
        targets = [each.at(r.index).detach() for each, r in zip(theirs, rows)]
    ours = site.read(student)
    tensors = [each.at(r.index) for each, r in zip(ours, rows)]
    shapes, wanted = ([tuple(t.shape) for t in each] for each in (tensors, targets))
    if not len(ours) == len(theirs) == len(rows) or shapes != wanted:
        raise RuntimeError(
            f'{site.name}: the student has tensors of the shapes {shapes}, the teacher '
            f'{wanted} with {len(rows)} weights'
        )
    return [
        Pair(tensor, target, reading.kind, r.weight, r.norm)
        for tensor, target, reading, r in zip(tensors, targets, ours, rows)
    ]
