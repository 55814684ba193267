"""What several losses share: their precision, their averages, their divergences."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LossFunction = TypeVar('LossFunction', bound=Callable[..., Tensor])

# on a variance or a squared norm: bounds the gradient of a channel that is dead
EPS = 1e-6
# elements at a time, of losses with many passes: what a CPU's cache holds, and what
# keeps a device busy; a whole map would need its size in memory several times over
_PIECE = 2**15
_PIECE_ON_DEVICE = 2**22


def in_full_precision(loss: LossFunction) -> LossFunction:
    """Run a loss in float32 with autocast off, on a detached teacher.

    Half precision is raised to float32; float64 stays, for gradient checks.

    Args:
        loss (Callable): A function of student, teacher, and keywords.

    Returns:
        Callable: The same function.

    Raises:
        ValueError: By the function, if the two tensors differ in shape, where
            broadcasting would hide a mistake.
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


class Loss(nn.Module):
    """A loss whose settings are numbers: attributes, which a printed model shows."""

    def extra_repr(self) -> str:
        """Show the settings."""
        settings = {k: v for k, v in vars(self).items() if k != 'training'}
        numbers = {k: v for k, v in settings.items() if isinstance(v, (int, float))}
        return ', '.join(f'{name}={value:g}' for name, value in numbers.items())


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
        TypeError: If the divergence is no tensor.
        ValueError: If the weights have another shape.
    """
    if not isinstance(divergence, Tensor):
        raise TypeError(f'the loss returned no tensor, but {divergence!r}')
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
        Tensor: The divergences, without ``dim``; exactly 0 at equal logits. They can be
        differentiated once.
    """
    apply = cast(Callable[..., Tensor], _CategoricalKL.apply)
    return apply(student, teacher, temperature, dim)


class _CategoricalKL(torch.autograd.Function):
    """Keeps one tensor for the backward pass, where autograd would keep 4."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, dim: int
    ) -> Tensor:
        log_q = _softened(student, temperature).log_softmax(dim)
        log_p = _softened(teacher, temperature).log_softmax(dim)
        p = log_p.exp()
        divergence = log_p.sub_(log_q).mul_(p).sum(dim).mul_(temperature**2)
        ctx.save_for_backward(log_q.exp_().sub_(p).mul_(temperature))
        ctx.dim = dim
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient.unsqueeze(ctx.dim) * slope, None, None, None


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
        divergence = student.new_empty(student.shape)
        slope = student.new_empty(student.shape)
        every = [x.reshape(-1) for x in (student, teacher, divergence, slope)]
        size = _PIECE if student.device.type == 'cpu' else _PIECE_ON_DEVICE
        for s, t, d, g in zip(*(torch.split(x, size) for x in every)):
            _bernoulli_kl(s, t, d, g, temperature, beta)
        ctx.save_for_backward(slope)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None


def _bernoulli_kl(
    s: Tensor,
    t: Tensor,
    divergence: Tensor,
    slope: Tensor,
    temperature: float,
    beta: float,
) -> None:
    """Write the divergence, and its derivative by the student's logits."""
    # mirrored to a teacher below 0, the terms are small and do not cancel
    sign = torch.copysign(torch.full_like(t, -1.0), t).neg_()
    s = _softened(s, temperature).mul_(sign)
    t = _softened(t, temperature).mul_(sign)
    # of one exponential each, since these and logarithms are most of the time:
    # sigmoid(x) = e^min(x, 0) / (1 + e^-|x|)
    exp_t, exp_s = t.exp(), s.abs().neg_().exp_()
    p = exp_t / (exp_t + 1)
    q = s.clamp(max=0).exp_().div_(exp_s + 1)
    # log((1 + e^s) / (1 + e^t))
    tail = exp_s.sub_(exp_t).div_(exp_t.add_(1)).log1p_().add_(s.clamp(min=0))
    torch.mul(t.sub_(s), p, out=divergence)
    divergence.add_(tail)
    gap = torch.sub(q, p, out=slope)
    if beta > 0:
        # the factor's slope is infinite at 0 when beta < 1, the product's is 0
        relative = divergence.div(gap).nan_to_num_(nan=0.0)
        focal = gap.abs().pow_(beta)
        slope.add_((1 - q).mul_(q).mul_(relative).mul_(beta)).mul_(focal)
        divergence.mul_(focal)
    slope.mul_(sign).mul_(temperature)
    divergence.mul_(temperature**2)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    # heads mark classes that are padding with -inf, and 0 * inf would be NaN
    scaled = logits if temperature == 1 else logits / temperature
    return scaled.clamp(min=torch.finfo(logits.dtype).min)


def standardized(x: Tensor) -> Tensor:
    r"""Shift and scale each channel to mean 0 and variance 1 over all else.

    :math:`(x - \mu_c) / \sqrt{\sigma_c^2 + 10^{-6}}` with the mean and the variance of
    each channel over N and all positions. A constant channel becomes 0.

    Args:
        x (Tensor): (N, C, ...).

    Returns:
        Tensor: Same shape.
    """
    if x.numel() == x.shape[1]:
        return x - x  # of one number each, exactly
    # one pass over the map; the function of torch.nn refuses a single value
    return torch.batch_norm(x, None, None, None, None, True, 0.0, EPS, False)
