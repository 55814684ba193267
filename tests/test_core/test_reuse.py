"""What is frozen runs once: bitwise as if it ran twice, and only while that holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from helpers import Scale, assert_bitwise, detection_batch, values_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from toys import Toy, distilled, step

from mmselfdistill.core import reuse
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.report import describe
from mmselfdistill.core.teacher import Average, copy_into, make_teacher
from mmselfdistill.views import View

PATH = Path(__file__).parents[2] / 'configs/digits/retinanet_r18_fpn_50e_digits.py'
STAGE = dict(frozen_stages=1, norm_eval=True)
TWO_STAGES = dict(frozen_stages=2, norm_eval=True)
DEEP = dict(STAGE, type='ResNetV1d')
WHOLE = dict(frozen_stages=4, norm_eval=True)
# the modules with weights that are reused
NAMES = {
    'one stage': (STAGE, 'backbone.conv1, backbone.bn1, backbone.layer1'),
    'two stages': (
        TWO_STAGES,
        'backbone.conv1, backbone.bn1, backbone.layer1, backbone.layer2',
    ),
    'deep stem': (DEEP, 'backbone.stem, backbone.layer1'),
    'backbone': (WHOLE, 'backbone'),
}
ONCE = 'Run once, since frozen and the same in student and teacher: '
TWICE = 'Frozen, but run by the teacher too: '
INPUTS = (
    'it is given something else than in the student, or what it returns is random or '
    'changed in place.'
)


class Detector:
    """A RetinaNet with a frozen part, and a teacher that differs where it trains."""

    def __init__(self, backbone: dict[str, Any], **settings: Any) -> None:
        init_default_scope('mmdet')
        cfg = Config.fromfile(PATH).model
        cfg.backbone.update(backbone)
        torch.manual_seed(0)
        self.model = MODELS.build(cfg)
        self.model.train()
        self.data = self.model.data_preprocessor(detection_batch(), True)
        self.distiller: Distiller = build_distiller(self.model, **settings)
        self.teacher = self.distiller.teacher = make_teacher(self.model)
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                if self.model.get_parameter(name).requires_grad:
                    parameter.mul_(1.1)
        self.runs: dict[str, int] = {}
        for path, module in self.teacher.named_modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                vars(module)['forward'] = self._counted(path, module.forward)
        self.distiller.attach()

    def _counted(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.runs[path] = self.runs.get(path, 0) + 1
            return forward(*args)

        return counted

    @property
    def reuse(self) -> reuse.Reuse:
        return self.distiller.labeled.reuse

    def losses(self, **changes: Any) -> dict[str, Tensor]:
        self.runs.clear()
        data = {**copy.deepcopy(self.data), **changes}
        found = self.model(**data, mode='loss')
        return {
            key: value if isinstance(value, Tensor) else sum(value)
            for key, value in found.items()
        }

    def ran(self, *starts: str) -> set[int]:
        """Return how often each convolution and norm ran in the last iteration."""
        modules = dict(self.teacher.named_modules())
        paths = [
            path
            for path, module in modules.items()
            if path.startswith(starts)
            and isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
        ]
        assert paths
        return {self.runs.get(path, 0) for path in paths}

    def step(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return losses and gradients of an iteration, and make a step."""
        losses = self.losses()
        self.model.zero_grad()
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        gradients = {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = parameter.grad.clone()
                    parameter.sub_(0.01 * parameter.grad)
        return losses, gradients


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, 'frozen_modules', lambda student: {})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


@pytest.mark.parametrize('case', NAMES)
def test_losses_and_gradients_are_bitwise_those_of_a_teacher_that_runs_it_all(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, names = NAMES[case]
    ours = Detector(backbone)
    found = [ours.step() for _ in range(3)]
    assert ours.reuse.describe() == f'{ONCE}{names}.'
    assert ours.reuse.describe() in describe(ours.distiller).splitlines()
    without(monkeypatch)
    plain = Detector(backbone)
    expected = [plain.step() for _ in range(3)]
    assert plain.reuse.describe() == ''
    for one, other in zip(found, expected):
        assert same(one[0], other[0]) and same(one[1], other[1])
        # the teacher is another where the student trains
        assert float(one[0]['loss_sd_features'].detach()) > 0
    assert_bitwise(ours.model, values_of(plain.model))
    assert_bitwise(ours.teacher, values_of(plain.teacher))


@pytest.mark.parametrize('case', NAMES)
def test_frozen_modules_of_the_teacher_run_in_the_first_iteration_alone(
    case: str,
) -> None:
    backbone, names = NAMES[case]
    detector = Detector(backbone)
    frozen = tuple(names.split(', '))
    for iteration in range(3):
        detector.losses()
        # a proof runs the frozen part once, and the rest two times more
        assert detector.ran(*frozen) == ({1} if iteration == 0 else {0})
        assert detector.ran('neck') == ({3} if iteration == 0 else {1})
        if backbone is not WHOLE:
            assert detector.ran('backbone.layer3') == detector.ran('neck')


def test_a_model_without_frozen_weights_is_repeated_once_more_only() -> None:
    detector = Detector(dict(frozen_stages=-1, norm_eval=True))
    for runs in (2, 1, 1):
        detector.losses()
        assert detector.ran('backbone', 'neck') == {runs}
    assert detector.reuse.describe() == ''


def test_only_what_is_needed_is_held() -> None:
    detector = Detector(TWO_STAGES)
    detector.losses()
    assert detector.reuse.paths == {
        'backbone.conv1': False,
        'backbone.bn1': False,
        'backbone.relu': False,
        'backbone.maxpool': False,
        # not one of the levels of this neck
        'backbone.layer1': False,
        'backbone.layer2': True,
    }


def test_an_adapter_on_a_frozen_part_is_not_frozen() -> None:
    student: Any = Toy()
    student.backbone.requires_grad_(False)
    student.adapter = Scale(0.0)
    # as adapters are put on: it trains, and what it acts on does not
    student.backbone.register_forward_hook(
        lambda module, args, x: x + student.adapter(args[0])
    )
    with distilled(student, {}) as distiller:
        found = [step(distiller)['features']]
        with torch.no_grad():
            student.adapter.factor += 3
        found += [step(distiller)['features'] for _ in range(3)]
    assert found == [0, 3, 3, 3]


def test_a_view_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(brightness=0.5)
    detector = Detector(STAGE, view=view)
    found = [detector.losses() for _ in range(2)]
    assert detector.ran('backbone', 'neck') == {1}
    assert detector.reuse.describe() == TWICE + INPUTS
    without(monkeypatch)
    plain = Detector(STAGE, view=view)
    assert all(same(each, plain.losses()) for each in found)


@pytest.mark.parametrize(
    ('name', 'reused'),
    [
        ('conv1.weight', ()),
        ('bn1.running_mean', ('conv1',)),
        ('layer1', ('conv1', 'bn1')),
    ],
)
def test_a_teacher_with_other_frozen_weights_runs_what_depends_on_them(
    name: str, reused: tuple[str, ...]
) -> None:
    detector = Detector(STAGE)
    with torch.no_grad():
        state = detector.teacher.backbone.state_dict()
        next(tensor for key, tensor in state.items() if key.startswith(name)).add_(1)
    for _ in range(2):
        detector.losses()
    for each in ('conv1', 'bn1', 'layer1'):
        # behind another stem, equal weights are of no use
        assert detector.ran(f'backbone.{each}') == {int(each not in reused)}
    names = ', '.join(f'backbone.{each}' for each in reused)
    assert detector.reuse.describe() == (
        f'{ONCE}{names}.' if reused else f"{TWICE}its weights are not the student's."
    )


@pytest.mark.parametrize(
    ('side', 'name'),
    [
        ('model', 'conv1.weight'),
        ('model', 'bn1.running_mean'),
        ('teacher', 'layer1.0.bn1.bias'),
    ],
)
def test_a_change_of_frozen_weights_is_noticed(
    side: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[list[dict[str, Tensor]], list[set[int]]]:
        detector = Detector(STAGE)
        part = 'backbone.' + name.rpartition('.')[0]
        losses, ran = [], []
        for iteration in range(7):
            if iteration == 2:
                with torch.no_grad():
                    getattr(detector, side).state_dict()[f'backbone.{name}'].add_(1)
            if iteration == 5:
                copy_into(detector.teacher, detector.model)
                detector.distiller.prove_again()
            losses.append(detector.losses())
            ran.append(detector.ran(part))
        return losses, ran

    found, ran = run()
    # reused; not reused, tried, not reused; proven again, reused
    assert ran[1:3] == [{0}, {1}] and ran[4:] == [{1}, {1}, {0}]
    without(monkeypatch)
    expected, ran = run()
    assert ran[1:] == [{1}] * 6
    assert all(map(same, found, expected))


def test_a_copy_into_the_teacher_is_proven() -> None:
    detector = Detector(STAGE)
    runs = []
    for iteration in range(6):
        if iteration == 3:
            copy_into(detector.teacher, detector.model)
        detector.losses()
        runs.append((*detector.ran('backbone.conv1'), *detector.ran('neck')))
    assert runs == [(1, 3), (0, 1), (0, 1), (1, 1), (1, 2), (0, 1)]


def test_an_average_keeps_it() -> None:
    detector = Detector(STAGE)
    average = Average(detector.teacher, detector.model)
    detector.step()
    for _ in range(3):
        with detector.distiller.averaging():
            average.update(0.3)
        detector.step()
        assert detector.ran('backbone.conv1', 'backbone.layer1') == {0}
    with torch.no_grad():
        detector.model.backbone.conv1.weight.mul_(2)
    with detector.distiller.averaging():
        average.update(0.3)
    # run again, tried in both ways, given up
    for runs in (1, 2, 1):
        detector.step()
        assert detector.ran('backbone.conv1', 'backbone.layer1') == {runs}


def assert_as_if_proven_again(detector: Detector) -> None:
    """Check an iteration against one that runs all, as the first one does."""
    found = detector.losses()
    detector.distiller.prove_again()
    assert same(found, detector.losses())


def test_an_average_hides_no_other_change() -> None:
    detector = Detector(STAGE)
    average = Average(detector.teacher, detector.model)
    before = [detector.losses() for _ in range(2)][1]
    assert detector.ran('backbone.conv1') == {0}
    with torch.no_grad():
        detector.teacher.backbone.conv1.weight.mul_(2)
    with detector.distiller.averaging():
        average.update(1.0)
    assert not same(detector.losses(), before)
    assert detector.ran('backbone.conv1') == {1}
    assert_as_if_proven_again(detector)


def test_another_teacher_is_proven() -> None:
    detector = Detector(STAGE)
    for _ in range(2):
        detector.losses()
    detector.distiller.teacher = make_teacher(detector.model)
    with torch.no_grad():
        detector.distiller.teacher.get_parameter('backbone.conv1.weight').mul_(2)
    assert_as_if_proven_again(detector)


def test_an_output_that_is_changed_in_place_later_is_noticed() -> None:
    detector = Detector(STAGE)
    factor = 1.0

    def scale(module: nn.Module, given: Any) -> None:
        if factor != 1:
            given[0].mul_(factor)

    # of the student alone
    detector.model.backbone.layer2.register_forward_pre_hook(scale)
    for _ in range(2):
        detector.losses()
    assert detector.ran('backbone.layer1') == {0}
    factor = 2.0
    assert_as_if_proven_again(detector)


def test_weights_that_change_always_are_given_up() -> None:
    detector = Detector(STAGE)
    runs = []
    for _ in range(10):
        detector.losses()
        runs.append(*detector.ran('neck'))
        copy_into(detector.teacher, detector.model)
    assert runs == [3, 1, 2, 1, 2, 1, 1, 1, 1, 1]
    assert (
        detector.reuse.describe() == f'{TWICE}its weights are changed again and again.'
    )


def test_a_module_in_another_mode_is_noticed() -> None:
    detector = Detector(STAGE)
    for _ in range(2):
        detector.losses()
    assert detector.ran('backbone.conv1') == {0}
    detector.model.backbone.bn1.train()
    for _ in range(3):
        detector.losses()
    # the student's norm goes by the batch, and its teacher's does not
    assert detector.ran('backbone.bn1', 'backbone.layer1') == {1}
    assert detector.reuse.describe() == f'{ONCE}backbone.conv1.'


def test_a_seam_inside_of_a_frozen_part_is_still_called() -> None:
    detector = Detector(WHOLE, seams=('backbone.layer3',))
    for _ in range(2):
        detector.losses()
    assert detector.ran('backbone') == {0}
    assert detector.reuse.describe() == (
        f'{ONCE}backbone.conv1, backbone.bn1, backbone.layer1, backbone.layer2, '
        'backbone.layer3, backbone.layer4.'
    )


def test_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[list[dict[str, Tensor]], set[int]]:
        detector = Detector(STAGE)
        with torch.autocast('cpu', torch.bfloat16):
            losses = [detector.losses() for _ in range(2)]
        return losses, detector.ran('backbone.conv1')

    found, ran = run()
    assert ran == {0}
    without(monkeypatch)
    expected, ran = run()
    assert ran == {1} and all(map(same, found, expected))


def test_nothing_is_held_after_an_iteration() -> None:
    detector = Detector(STAGE)
    for _ in range(2):
        detector.losses()
        assert detector.reuse._frozen.calls == []
