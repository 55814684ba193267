"""Forward hooks of the user's own: what only looks on, and what acts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import Scale
from test_flow import AdaptedToy
from torch import Tensor, nn
from toys import OTHERS, Toy, distilled, step

REPLACED = (
    'self_distill: the teacher cannot repeat what this model does.\n  {}: a forward '
    'hook replaces what it returns, which the teacher does not repeat. Put what the '
    'hook does into forward'
)


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def doubled_before(module: nn.Module, args: Any) -> Any:
    return tuple(2 * each for each in args)


class Looker:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def before(self, module: nn.Module, args: Any) -> None:
        self.seen.append('before')

    def after(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append('after')


def hook_counts(model: nn.Module) -> list[int]:
    return [
        len(table)
        for module in model.modules()
        for name, table in vars(module).items()
        if 'hooks' in name
    ]


@pytest.mark.parametrize('path', ['bbox_head', 'backbone', 'adapter', ''])
def test_a_hook_that_looks_on_fires_once_for_each_forward(path: str) -> None:
    student, looker = AdaptedToy(adapter=Scale(1.0)), Looker()
    part = student.get_submodule(path)
    part.register_forward_hook(looker.after)
    part.register_forward_pre_hook(looker.before)
    before = hook_counts(student)
    with distilled(student, OTHERS) as distiller:
        for count in range(1, 4):
            assert step(distiller) == dict(features=3, logits=29)
            assert looker.seen == ['before', 'after'] * count
            assert hook_counts(student) == before
        assert distiller.labeled.acting == []


@pytest.mark.parametrize('path', ['bbox_head', 'adapter'])
def test_a_hook_that_replaces_what_a_seam_returns_is_refused(path: str) -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    student.get_submodule(path).register_forward_hook(doubled)
    message = re.escape(REPLACED.format(f'{path}.forward'))
    with distilled(student, {}) as distiller:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                step(distiller)


@pytest.mark.parametrize('path', ['bbox_head', 'adapter'])
def test_a_hook_that_replaces_what_a_seam_is_given_is_refused(path: str) -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    student.get_submodule(path).register_forward_pre_hook(doubled_before)
    message = rf'{path}\.forward: its argument x \(2, 3\) depends on weights'
    with distilled(student, {}) as distiller, pytest.raises(
        RuntimeError, match=message
    ):
        step(distiller)


class DeepToy(Toy):
    """Its features are made by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = Scale(1.0)

    def extract_feat(self, inputs: Tensor) -> Any:
        return self.neck(self.backbone(inputs))


@pytest.mark.parametrize('path', ['neck', 'backbone'])
@pytest.mark.parametrize('before', [True, False])
def test_a_hook_that_acts_inside_of_a_seam_is_the_teachers_too(
    path: str, before: bool
) -> None:
    student, looker = DeepToy(), Looker()
    part = student.get_submodule(path)
    part.register_forward_hook(looker.after)
    if before:
        part.register_forward_pre_hook(doubled_before)
    else:
        part.register_forward_hook(doubled)
    with distilled(student, OTHERS) as distiller:
        for _ in range(3):
            gaps = dict(features=2 * 5 - 2 * 2, logits=2 * 5 * 7 - 2 * 2 * 3)
            assert step(distiller) == gaps
        assert distiller.labeled.acting == [doubled_before if before else doubled]
        # what looks on stays the student's
        assert looker.seen == ['after'] * 3
    with distilled(student, {}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=0)
