"""A container that two modules of the student hold is one in the teacher, too."""

from __future__ import annotations

from typing import Any

import torch
from helpers import Scale
from test_handed import Reading
from torch import Tensor, nn
from toys import Toy, distilled, step

from mmselfdistill.core.attributes import Attributes


def test_a_dict_of_tensors_that_two_modules_hold_is_read_once() -> None:
    one, two, three = (dict(left=torch.tensor(n)) for n in (1.0, 2.0, 3.0))
    student = Toy()
    readings = [Reading(one, lambda held: held['left']) for _ in range(2)]
    student.bbox_head = nn.Sequential(*readings)
    with distilled(student, {'backbone': 5.0}) as distiller:
        teacher: Any = distiller.teacher
        pairs = [(one, one), (two, two), (two, one), (three, one), (three, three)]
        for held in [*pairs, (one, three), (two, two)]:
            for reading, each in zip(readings, held):
                reading.held = each
            product = float(held[0]['left'] * held[1]['left'])
            for _ in range(2):
                assert step(distiller)['logits'] == (5 - 2) * 3 * 3 * product
            shared = held[0] is held[1]
            read = [[*each.others] for each in Attributes(student.bbox_head).now()]
            assert read[-2:] == [['held'], [] if shared else ['held']]
            first, second = (part.held for part in teacher.bbox_head)
            assert (first is second) == shared


class LeavingSharing(Toy):
    """Leaves its features in a dict that both parts of its head hold."""

    def __init__(self) -> None:
        super().__init__()
        held: dict[str, Tensor] = {}
        readings = [Reading(held, lambda held: held.get('left', 1.0)) for _ in range(2)]
        self.bbox_head = nn.Sequential(*readings)

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        self.bbox_head[0].held['left'] = features
        return self.bbox_head(inputs.abs())


def test_features_in_a_dict_that_two_modules_hold_are_the_teachers() -> None:
    student = LeavingSharing()
    first, second = student.bbox_head
    with distilled(student, {'backbone': 5.0}) as distiller:
        for held, expected in (
            (first.held, (5 * 5 - 2 * 2) * 3 * 3),
            (dict(left=torch.tensor(1.0)), (5 - 2) * 3 * 3),
            (first.held, (5 * 5 - 2 * 2) * 3 * 3),
        ):
            second.held = held
            for _ in range(2):
                assert step(distiller)['logits'] == expected


class Leaving(Scale):
    """Leaves what it makes in a dict."""

    def __init__(self, held: dict[str, Tensor]) -> None:
        super().__init__(3.0)
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        self.held['left'] = super().forward(x)
        return x


class Clearing(Toy):
    """A part of its head reads what another has left in a dict, which is emptied."""

    def __init__(self) -> None:
        super().__init__()
        held: dict[str, Tensor] = {}
        self.bbox_head = nn.Sequential(
            Leaving(held), Reading(held, lambda held: held['left'])
        )

    def logits(self, inputs: Tensor) -> Any:
        features = self.extract_feat(inputs)
        self.bbox_head[0].held.clear()
        return self.bbox_head(features)


def test_a_dict_that_is_emptied_stays_one() -> None:
    with distilled(Clearing(), {'backbone': 5.0}) as distiller:
        for _ in range(3):
            # features times 3, and what is left of them: again times 3
            assert step(distiller)['logits'] == (5 * 5 - 2 * 2) * 3 * 3
