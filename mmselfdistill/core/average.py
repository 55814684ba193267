"""The value of a term: averaged over rows, pairs of its site, and ranks."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from mmselfdistill.core.pairs import Pair
from mmselfdistill.core.terms import Term
from mmselfdistill.losses.common import reduced

_Norms = Dict[Tuple[str, int], Tensor]


def averaged(
    terms: Sequence[Term],
    pairs: Mapping[str, list[Pair]],
    shapes: Mapping[str, Sequence[str]],
    zero: Tensor,
) -> dict[str, Tensor]:
    """Return the divergence of each term, averaged over the pairs of its site.

    Args:
        terms (Sequence[Term]): The terms to compute.
        pairs (Mapping[str, list[Pair]]): Of each.
        shapes (Mapping[str, Sequence[str]]): As many for each as any rank has pairs.
        zero (Tensor): 0, on the student's device.
    """
    values = {
        term.name: [term.divergence(each) for each in pairs[term.name]]
        for term in terms
    }
    norms = _norms(pairs, values, shapes, zero)
    return {
        term.name: _mean(term, pairs[term.name], values[term.name], norms, zero)
        for term in terms
    }


def _norms(
    pairs: Mapping[str, list[Pair]],
    values: Mapping[str, list[Tensor]],
    shapes: Mapping[str, Sequence[str]],
    zero: Tensor,
) -> _Norms:
    """Return what each pair's sum is divided by, averaged over ranks.

    So that several processes give the gradient of one with the whole batch, where a
    loss has a number for each row; but an average below 1 counts as 1. Each pair has
    its place: another rank may have taken a branch that this one did not.
    """
    places = [(name, i) for name in pairs for i in range(len(shapes[name]))]
    if get_world_size() == 1 or not places:
        return {}
    found = {
        (name, i): each.norm_of(values[name][i])
        for name in pairs
        for i, each in enumerate(pairs[name])
    }
    vector = torch.stack([found.get(p, zero).float().to(zero) for p in places])
    all_reduce(vector, 'mean')
    return dict(zip(places, vector))


def _mean(
    term: Term,
    pairs: Sequence[Pair],
    values: Sequence[Tensor],
    norms: _Norms,
    zero: Tensor,
) -> Tensor:
    # tied to what trains of the loss: each rank has to have its gradient
    trained = [p for p in term.loss.parameters() if p.requires_grad]
    total = sum((p.sum() * 0 for p in trained), zero)
    for i, (each, value) in enumerate(zip(pairs, values)):
        norm = norms.get((term.name, i), each.norm)
        total = total + reduced(value, each.weight, norm).to(total.device)
    # no pair: a branch that this batch did not take
    return total / max(len(pairs), 1)
