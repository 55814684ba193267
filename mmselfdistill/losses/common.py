"""What several losses share: their precision, their averages, their divergences."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LossFunction = TypeVar('LossFunction', bound=Callable[..., Tensor])

# on a variance or a squared norm: bounds the gradient of a channel that is dead
EPS = 1e-6


def in_full_precision(loss: LossFunction) -> LossFunction:
    """Run a loss in float32 with autocast off, on a detached teacher.

    Half precision is raised to float32; float64 stays, for gradient checks.

    Args:
        loss (Callable): A function of student, teacher, and keywords.

    Returns:
        Callable: The same function. It raises ValueError when the two tensors
        differ in shape, where broadcasting would hide a mistake.
    """

    @functools.wraps(loss)
    def wrapper(student: Tensor, teacher: Tensor, **context: Any) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                f'{loss.__name__}: student and teacher must have one shape, but got '
                f'{tuple(student.shape)} and {tuple(teacher.shape)}'
            )
        with torch.autocast(student.device.type, enabled=False):
            return loss(_raised(student), _raised(teacher.detach()), **context)

    return cast(LossFunction, wrapper)


def _raised(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def check_kind(loss: str, kind: str, kinds: Sequence[str]) -> None:
    """Raise ValueError if a loss does not take what a site's numbers are."""
    if kind not in kinds:
        taken = ' or '.join(repr(each) for each in kinds)
        raise ValueError(f'{loss} takes {taken}, but the site is {kind!r}')


def reduced(
    divergence: Tensor, weight: Tensor | None = None, norm: Tensor | None = None
) -> Tensor:
    r"""Average a divergence over what counts: :math:`\sum_i w_i d_i / \max(n, 1)`.

    Args:
        divergence (Tensor): One number a row (N), a position (N, H, W) or a mask (P).
            A scalar, of rows that cannot be told apart, is returned as it is.
        weight (Tensor, optional): :math:`w`, same shape, boolean or not negative, gets
            no gradient. Defaults to None: all 1.
        norm (Tensor, optional): :math:`n`, a scalar. Defaults to None: the sum of the
            weights, or the number of rows.

    Returns:
        Tensor: A scalar; 0 of no row, still tied to the graph.

    Raises:
        ValueError: If the weights have another shape.
    """
    if divergence.dim() == 0:
        return divergence
    if weight is not None:
        if weight.shape != divergence.shape:
            raise ValueError(
                f'the loss has one number for each of {tuple(divergence.shape)}, but '
                f'the site weighs {tuple(weight.shape)}'
            )
        weight = weight.detach().to(divergence.dtype)
        divergence = divergence * weight
        norm = weight.sum() if norm is None else norm
    if norm is None:
        return divergence.sum() / max(divergence.numel(), 1)
    return divergence.sum() / norm.detach().to(divergence).clamp(min=1.0)


def categorical_kl(
    student: Tensor, teacher: Tensor, temperature: float, dim: int
) -> Tensor:
    r"""Softened divergence of two softmax distributions.

    :math:`T^2 \sum_c p_c (\log p_c - \log q_c)` with :math:`p, q` the softmax
    of the teacher's and the student's logits divided by :math:`T`.

    Args:
        student (Tensor): Logits.
        teacher (Tensor): Logits, same shape.
        temperature (float): :math:`T`.
        dim (int): The dimension of the classes, which is summed.

    Returns:
        Tensor: The divergences, without ``dim``; exactly 0 at equal logits.
    """
    log_q = _softened(student, temperature).log_softmax(dim)
    log_p = _softened(teacher, temperature).log_softmax(dim)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim)


def bernoulli_kl(
    student: Tensor, teacher: Tensor, temperature: float, beta: float = 0.0
) -> Tensor:
    r"""Softened divergence of two sigmoid probabilities, element by element.

    :math:`T^2 |p - q|^\beta (p \log (p / q) + (1 - p) \log ((1 - p) / (1 - q)))`
    with :math:`p, q` the sigmoid of the teacher's and the student's logits
    divided by :math:`T`. Can be differentiated once.

    Args:
        student (Tensor): Logits.
        teacher (Tensor): Logits, same shape.
        temperature (float): :math:`T`.
        beta (float): :math:`\beta`, at least 0. Defaults to 0.0.

    Returns:
        Tensor: The divergences, same shape; exactly 0 at equal logits.
    """
    apply = cast(Callable[..., Tensor], _BernoulliKL.apply)
    return apply(student, teacher, temperature, beta)


class _BernoulliKL(torch.autograd.Function):
    """Keeps one tensor for the backward pass, where autograd would keep 13.

    A dense head has tens of millions of these elements.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, beta: float
    ) -> Tensor:
        # mirrored to a teacher below 0, the terms are small and do not cancel; in
        # place, since on a CPU a fresh tensor costs as much as the arithmetic
        sign = torch.copysign(torch.full_like(teacher, -1.0), teacher).neg_()
        s = _softened(student, temperature).mul_(sign)
        t = _softened(teacher, temperature).mul_(sign)
        p, q = t.sigmoid(), s.sigmoid()
        tail = F.logsigmoid(-t).sub_(F.logsigmoid(-s))
        divergence = t.sub_(s).mul_(p).add_(tail)
        gap = slope = p.neg_().add_(q)
        if beta > 0:
            # the factor's slope is infinite at 0 when beta < 1, the product's is 0
            relative = divergence.div(gap).nan_to_num_(nan=0.0)
            focal = gap.abs().pow_(beta)
            slope = (1 - q).mul_(q).mul_(relative).mul_(beta).add_(gap).mul_(focal)
            divergence.mul_(focal)
        ctx.save_for_backward(slope.mul_(sign).mul_(temperature))
        return divergence.mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None


def _softened(logits: Tensor, temperature: float) -> Tensor:
    # heads mark classes that are padding with -inf, and 0 * inf would be NaN
    return (logits / temperature).clamp(min=torch.finfo(logits.dtype).min)


def standardized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over some dimensions.

    A constant slice becomes 0.
    """
    centered = x - x.mean(dims, keepdim=True)
    variance = centered.square().mean(dims, keepdim=True)
    return centered * (variance + EPS).rsqrt()
