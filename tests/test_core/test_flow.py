"""What the teacher is given between two seams is its own, on models of every shape."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from helpers import Scale
from mmengine.structures import InstanceData
from torch import Tensor, nn
from toys import OTHERS, TERMS, Toy, distilled, signs, step

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.report import describe
from mmselfdistill.core.teacher import make_teacher


@dataclass(frozen=True)
class Features:
    tensor: Tensor
    stride: int = 8


class Own:
    def __init__(self, tensor: Tensor) -> None:
        self.levels = [{'p3': tensor}]

    @property
    def tensor(self) -> Tensor:
        return self.levels[0]['p3']


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    'dataclass': Features,
    'namespace': lambda x: SimpleNamespace(tensor=x),
    'own class': Own,
    'data element': lambda x: InstanceData(tensor=x),
    'nested': lambda x: Features(SimpleNamespace(tensor=x)),  # type: ignore[arg-type]
}


class HoldingToy(Toy):
    """Its features are in an object, which its head takes, or what is in it."""

    def __init__(self, hold: Callable[[Tensor], Any], *, whole: bool) -> None:
        super().__init__()
        self.bbox_head = HoldingHead(3.0)
        self.hold, self.whole = hold, whole

    def extract_feat(self, inputs: Tensor) -> Any:
        return self.hold(self.backbone(inputs))

    def logits(self, inputs: Tensor) -> Any:
        held = self.extract_feat(inputs)
        return self.bbox_head(held if self.whole else held.tensor)


class HoldingHead(Scale):
    def forward(self, held: Any) -> Tensor:  # type: ignore[override]
        while not isinstance(held, Tensor):
            held = held.tensor
        return super().forward(held)


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('kind', HOLDERS)
def test_features_in_an_object_reach_the_head(kind: str, whole: bool) -> None:
    student = HoldingToy(HOLDERS[kind], whole=whole)
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            # of the student's features it would be 2 * 7 - 6
            assert step(distiller) == dict(features=5 - 2, logits=5 * 7 - 2 * 3)
        assert distiller.labeled.found == []


class AdaptedToy(Toy):
    """There are modules between features and head."""

    def __init__(self, **adapters: nn.Module) -> None:
        super().__init__()
        self.names = list(adapters)
        for name, adapter in adapters.items():
            self.add_module(name, adapter)

    def logits(self, inputs: Tensor) -> Any:
        x = self.extract_feat(inputs)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.bbox_head(x)


def test_an_adapter_is_found_and_the_teachers_own_is_used() -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    with distilled(student, {'adapter': 4.0}) as distiller:
        for _ in range(3):
            assert step(distiller) == dict(features=0, logits=3 * 2 * 4 - 3 * 2)
        assert distiller.labeled.found == ['adapter.forward']
        assert [seam.path for seam in distiller.labeled.plan.seams] == [
            'extract_feat',
            'bbox_head.forward',
            'adapter.forward',
        ]
        assert 'between two calls: adapter.forward.' in describe(distiller)
    with distilled(student, {'adapter': 4.0, **OTHERS}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=5 * 4 * 7 - 3 * 2)
    with distilled(student, {}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=0)


@pytest.mark.parametrize('part', ['0', '1.0', '1.1'])
def test_nested_adapters_are_found_once_as_the_outermost(part: str) -> None:
    inner = nn.Sequential(Scale(1.0), Scale(2.0))
    student = AdaptedToy(adapter=nn.Sequential(Scale(3.0), inner))
    with distilled(student, {f'adapter.{part}': 4.0}) as distiller:
        gap = 3 * 2 * (4 * 3 * 2 * 1 / {'0': 3, '1.0': 1, '1.1': 2}[part] - 6)
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=abs(gap))
        assert distiller.labeled.found == ['adapter.forward']


@pytest.mark.parametrize('part', ['first', 'second', 'third'])
def test_an_adapter_of_an_adapters_output(part: str) -> None:
    student = AdaptedToy(first=Scale(1.0), second=Scale(1.0), third=Scale(1.0))
    with distilled(student, {part: 4.0}) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=3 * 2 * (4 - 1))
        assert sorted(distiller.labeled.found) == [
            'first.forward',
            'second.forward',
            'third.forward',
        ]


def test_an_adapter_that_holds_a_seam_is_found_by_its_other_parts() -> None:
    student = AdaptedToy()
    student.adapter = nn.Sequential(student.bbox_head, Scale(2.0))
    student.names = ['adapter']
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            first, second = 5 * 7 - 2 * 3, 5 * 7 * 2 * 7 - 2 * 3 * 2 * 3
            assert step(distiller) == dict(features=3, logits=(first + second) / 2)
        assert distiller.labeled.found == ['adapter.1.forward']


class PyramidToy(Toy):
    """Two levels through one adapter, and one of them through another."""

    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = SumHead(3.0)
        self.adapter, self.other = Scale(1.0), Scale(1.0)

    def logits(self, inputs: Tensor) -> Any:
        x = self.extract_feat(inputs)
        levels = [self.adapter(x), self.adapter(self.other(x))]
        return self.bbox_head({'levels': levels})


class SumHead(Scale):
    def forward(self, given: Any) -> Tensor:  # type: ignore[override]
        return super().forward(sum(given['levels']))  # type: ignore[arg-type]


def test_an_adapter_that_is_called_for_each_level() -> None:
    student = PyramidToy()
    with distilled(student, {'adapter': 4.0, 'other': 5.0}) as distiller:
        for _ in range(2):
            logits = 3 * (2 * 4 + 2 * 5 * 4) - 3 * (2 + 2)
            assert step(distiller) == dict(features=0, logits=logits)
        assert sorted(distiller.labeled.found) == ['adapter.forward', 'other.forward']


class UnusedToy(AdaptedToy):
    """Its adapter is used for a loss, and by no seam."""

    def logits(self, inputs: Tensor) -> Any:
        x = self.extract_feat(inputs)
        return self.bbox_head(x) + 0 * self.get_submodule('adapter')(x)


def test_a_module_that_no_seam_depends_on_is_not_repeated() -> None:
    with distilled(UnusedToy(adapter=Scale(1.0)), OTHERS) as distiller:
        assert step(distiller) == dict(features=3, logits=29)
        assert distiller.labeled.found == []
        adapter: Any = distiller.teacher and distiller.teacher.get_submodule('adapter')
        assert adapter.runs == 0


class ParameterToy(Toy):
    """Its head is given parameters and buffers of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = WeightedHead(3.0)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer('shift', torch.tensor(0.0))

    def logits(self, inputs: Tensor) -> Any:
        x = self.extract_feat(inputs)
        return self.bbox_head(x, [self.scale], shift=self.get_buffer('shift'))


class WeightedHead(Scale):
    def forward(  # type: ignore[override]
        self, x: Tensor, scales: list[Tensor], shift: Tensor
    ) -> Tensor:
        return super().forward(x) * scales[0] + shift * signs()


def test_a_parameter_that_is_passed_on_is_the_teachers_own() -> None:
    student = ParameterToy()
    with distilled(student, {}) as distiller:
        teacher: Any = distiller.teacher
        with torch.no_grad():
            teacher.scale.fill_(4.0)
        for _ in range(2):
            assert step(distiller) == dict(features=0, logits=6 * 4 - 6)
        teacher.shift.fill_(10.0)
        assert step(distiller) == dict(features=0, logits=6 * 4 + 10 - 6)
        # also after the student's have changed
        with torch.no_grad():
            student.scale.fill_(3.0)
        assert step(distiller) == dict(features=0, logits=6 * 4 + 10 - 6 * 3)
        # and of another teacher
        distiller.teacher = make_teacher(student)
        assert step(distiller) == dict(features=0, logits=0)


class ScaledToy(Toy):
    """A method scales and joins features between the seams."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def prepare(self, x: Tensor) -> Tensor:
        return torch.cat([x, x * self.factor])

    def logits(self, inputs: Tensor) -> Any:
        return self.bbox_head(self.prepare(self.extract_feat(inputs)))


def test_a_method_that_is_named_is_repeated() -> None:
    settings: Any = dict(terms=TERMS, seams=['prepare'])
    with distilled(ScaledToy(), OTHERS, **settings) as distiller:
        for _ in range(2):
            assert step(distiller) == dict(features=3, logits=29)
        assert distiller.labeled.found == []
        teacher: Any = distiller.teacher
        with torch.no_grad():
            teacher.factor.fill_(2.0)
        # half of the rows twice as large
        assert step(distiller) == dict(features=3, logits=(29 + 70 - 6) / 2)


def test_a_module_may_be_named_too() -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    with distilled(student, {'adapter': 4.0}, seams=['adapter']) as distiller:
        assert step(distiller) == dict(features=0, logits=18)
        assert distiller.labeled.found == []
        assert 'adapter.forward' in [seam.path for seam in distiller.labeled.plan.seams]


@pytest.mark.parametrize('path', ['prepared', 'neck.forward', 'factor', ''])
def test_a_seam_that_is_not_there_is_refused(path: str) -> None:
    message = rf"^seams: ScaledToy has no method or module '{path}'$"
    with pytest.raises(ValueError, match=message):
        build_distiller(ScaledToy(), TERMS, seams=[path])


class Noting(Toy):
    """Notes where its features are, and does not hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def extract_feat(self, inputs: Tensor) -> Tensor:
        features: Tensor = super().extract_feat(inputs)
        self.noted.append(weakref.ref(features))
        return features


def test_the_first_iteration_leaves_no_features_to_the_garbage_collector() -> None:
    student = Noting()
    with distilled(student, OTHERS) as distiller:
        gc.disable()
        try:
            step(distiller)
            # of the student, and of its copies that are tried
            held = [each() is not None for each in student.noted]
        finally:
            gc.enable()
    assert held and not any(held)
