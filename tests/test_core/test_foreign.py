"""A teacher that reaches its student's tensors without being given them is refused."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from torch import Tensor
from toys import OTHERS, Toy, distilled, signs, step

LOGITS = 5 * 7 - 2 * 3
VARIABLE: ContextVar[Any] = ContextVar('VARIABLE')
LOCAL = threading.local()


class Taking(Scale):
    """Adds something that it is not given."""

    def __init__(self, take: Callable[[], Any]) -> None:
        super().__init__(3.0)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.take()


class Leaving(Toy):
    """Leaves something of its features, or of itself, where its head looks."""

    def __init__(
        self, leave: Callable[[Any, Tensor], Any], take: Callable[[], Any]
    ) -> None:
        super().__init__()
        self.leave = leave
        self.bbox_head = Taking(take)

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        self.leave(self, features)
        return self.bbox_head(features)


def take_local() -> Any:
    return LOCAL.value


def take_variable() -> Any:
    return VARIABLE.get()


CASES: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[], Any]]] = {
    'a context variable': (lambda model, x: VARIABLE.set(x), take_variable),
    'a local of the thread': (lambda model, x: setattr(LOCAL, 'value', x), take_local),
    'detached': (lambda model, x: setattr(LOCAL, 'value', x.detach()), take_local),
    'a part': (lambda model, x: setattr(LOCAL, 'value', x[:1]), take_local),
    'a weight': (
        lambda model, x: setattr(LOCAL, 'value', model.backbone.factor),
        take_local,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_what_the_teacher_was_not_given(case: str) -> None:
    student = Leaving(*CASES[case])
    message = "it uses the student's own tensor"
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                step(distiller)


@pytest.mark.parametrize('frozen', [False, True])
def test_what_depends_on_no_weight_is_for_both(frozen: bool) -> None:
    student = Leaving(
        lambda model, x: setattr(LOCAL, 'value', torch.ones(3)), take_local
    )
    student.backbone.requires_grad_(not frozen)
    with distilled(student, {'bbox_head': 7.0}) as distiller:
        for _ in range(2):
            assert step(distiller)['logits'] == 2 * 7 - 2 * 3
    # what watched over it is gone
    assert torch.equal(student(signs()), signs() * 6 + 1)
