"""A loss is tried in the first iteration, and keeps nothing of that."""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn
from toys import OTHERS, TERMS, Gap, Toy, distilled, step

from mmselfdistill.core import loss_trial


class Remembers(Gap):
    """Keeps what it has seen in all ways that a module may."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))
        self.count = 0
        self.last: Any = None
        self.queue: deque[float] = deque(maxlen=9)

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        value = super().forward(student, teacher)
        self.mean += value.detach()
        self.count += 1
        self.last = value.detach()
        self.queue.append(float(value))
        return value


class Locked(Remembers):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.made = True
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ('kind', 'changes'),
    [(Remembers, 'count, last, queue'), (Locked, 'count, last, made, queue')],
)
def test_a_loss_has_seen_the_numbers_of_the_run_alone(
    kind: Any, changes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loss_trial, 'print_log', lambda text, **_: said.append(text))
    terms = dict(TERMS, logits=dict(type=kind, site='bbox_head'))
    with distilled(Toy(), OTHERS, terms=terms) as distiller:
        loss: Any = next(t.loss for t in distiller.terms if t.name == 'logits')
        for number in (1, 2, 3):
            assert step(distiller)['logits'] == 29
            assert (loss.count, float(loss.mean)) == (number, 29.0 * number)
            assert (float(loss.last), [*loss.queue]) == (29.0, [29.0] * number)
    # of what a checkpoint does not hold
    warned = f'terms.logits: {kind.__name__} changes {changes} when it is called'
    assert [text[: len(warned)] for text in said] == [warned]


class Late(Gap):
    """Makes a weight, or a buffer, when it sees how many channels there are."""

    kind = 'weight'

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        if getattr(self, 'made', None) is None:
            made = torch.ones(student.shape[1])
            if self.kind == 'weight':
                self.made = nn.Parameter(made)
            else:
                self.register_buffer('made', made)
        return ((student - teacher) * self.made).abs().mean()


class LateBuffer(Late):
    kind = 'buffer'


class EmptyBuffer(LateBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('made', None)


class Lazy(Gap):
    """Learns its size in its first call, as PyTorch does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(2)

    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        return (self.layer(student) - self.layer(teacher)).abs().mean()


@pytest.mark.parametrize('kind', [Late, LateBuffer, EmptyBuffer])
def test_what_a_loss_makes_in_its_first_call_is_refused(kind: Any) -> None:
    terms = dict(TERMS, logits=dict(type=kind, site='bbox_head'))
    message = rf"^terms\.logits: {kind.__name__} makes 'made' in its first call"
    with distilled(Toy(), OTHERS, terms=terms) as distiller:
        with pytest.raises(ValueError, match=message):
            step(distiller)
        loss = next(t.loss for t in distiller.terms if t.name == 'logits')
        assert getattr(loss, 'made', None) is None


def test_a_lazy_layer_is_refused() -> None:
    terms = dict(TERMS, logits=dict(type=Lazy, site='bbox_head'))
    message = r"^terms\.logits\.type: 'layer.weight' of .*Lazy.* has no size before"
    with pytest.raises(ValueError, match=message), distilled(
        Toy(), OTHERS, terms=terms
    ):
        pass


@pytest.mark.parametrize(
    'value',
    [
        lambda s, t: torch.relu_(s).sub(torch.relu(t)).abs().sum(),
        lambda s, t: t.sub_(t.mean()).sub(s).abs().sum(),
    ],
    ids=['student', 'teacher'],
)
def test_a_loss_that_changes_what_it_is_given_is_refused(
    value: Callable[..., Any],
) -> None:
    class InPlace(Gap):
        def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Any:
            return value(student, teacher)

    terms = dict(TERMS, logits=dict(type=InPlace, site='bbox_head'))
    message = r'^terms\.logits: InPlace changes the tensors that it is given in place'
    with distilled(Toy(), OTHERS, terms=terms) as distiller, pytest.raises(
        ValueError, match=message
    ):
        step(distiller)


def test_a_loss_for_which_memory_is_too_small_is_not_called_wrong() -> None:
    class Large(Gap):
        def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Any:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    terms = dict(TERMS, logits=dict(type=Large, site='bbox_head'))
    with distilled(Toy(), OTHERS, terms=terms) as distiller, pytest.raises(
        torch.cuda.OutOfMemoryError, match=r'^CUDA out of memory$'
    ):
        step(distiller)
