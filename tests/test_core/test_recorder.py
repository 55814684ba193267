"""Recording and repeating calls, on modules small enough to compute by hand."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Scale, image
from torch import Tensor, nn
from toys import repeat

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.recorder import record
from mmselfdistill.families.plan import Seam
from mmselfdistill.families.shared import seams
from mmselfdistill.wrapping import resolve

SEAMS = seams('extract_feat', 'head.forward', 'box_head.forward')


Sizes = namedtuple('Sizes', ['image', 'feature'])


class Head(nn.Module):
    """Its output depends on features, rois, keywords, containers and a random draw."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(
        self, feats: list[Tensor], rois: Tensor, extra: dict[str, Any], noise: float = 0
    ) -> dict[str, Tensor]:
        x = feats[0] * self.factor + rois + extra['bias']
        return dict(scores=x + noise * torch.rand(4))


class Detector(nn.Module):
    """Features by 2, rois drawn between the seams, head by 3, second head by 5."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Scale(2.0)
        self.head = Head(3.0)
        self.box_head = Scale(5.0)

    def extract_feat(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone(image)
        return x, x + 1

    def forward(self, image: Tensor, noise: float = 0) -> Tensor:
        feats = list(self.extract_feat(image))
        rois = torch.rand(4)
        outputs = self.head(feats, rois, extra=dict(bias=feats[1]), noise=noise)
        detached: Tensor = outputs['scores'].detach() + 0
        # a RoI head adds to what its seam returned
        outputs['targets'] = detached
        feats.append(detached)
        result: Tensor = self.box_head(outputs['scores']) + self.box_head(detached)
        return result


def detector_pair() -> tuple[Detector, Detector]:
    """A student, and a teacher of which every part has another factor."""
    torch.manual_seed(0)
    student, teacher = Detector(), Detector()
    with torch.no_grad():
        for parameter, factor in zip(teacher.parameters(), (7.0, 11.0, 13.0)):
            parameter.fill_(factor)
    return student, teacher


def test_tensors_of_earlier_calls_become_the_teachers_and_others_stay() -> None:
    student, teacher = detector_pair()
    with record(student, SEAMS) as calls:
        student(image())
    made = repeat(teacher, calls, SEAMS)
    paths = ['extract_feat', 'head.forward', 'box_head.forward', 'box_head.forward']
    assert [call.path for call in calls] == [call.path for call in made] == paths

    (feat, feat_plus_1), rois = calls[0].output, calls[1].args[1]
    assert torch.equal(feat, 2 * image())
    assert torch.equal(calls[1].output['scores'], 3 * feat + rois + feat_plus_1)
    their_feat, their_feat_plus_1 = made[0].output
    assert torch.equal(their_feat, 7 * image())
    assert torch.equal(their_feat_plus_1, 7 * image() + 1)
    # features in a list and in a dict are the teacher's, the rois the student's
    scores = 11 * their_feat + rois + their_feat_plus_1
    assert made[1].args[1] is rois
    assert torch.equal(made[1].output['scores'], scores)
    # only what a call returned is followed, not what is computed from it
    assert made[2].args[0] is made[1].output['scores']
    assert torch.equal(made[2].output, 13 * scores)
    assert made[3].args[0] is calls[3].args[0]
    assert torch.equal(made[3].output, 13 * calls[1].output['scores'])


def test_student_keeps_its_graph_and_the_teacher_has_none() -> None:
    student, teacher = detector_pair()
    with record(student, SEAMS) as calls:
        result = student(image())
    made = repeat(teacher, calls, SEAMS)
    student_tensors = [t for call in calls for t in tensors_in(call.output)]
    assert all(t.requires_grad for t in student_tensors)
    assert not any(t.requires_grad for call in made for t in tensors_in(call.output))
    result.sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_containers_are_copied_as_they_were_at_the_call() -> None:
    student, _ = detector_pair()
    with record(student, SEAMS) as calls:
        student(image())
    # the model appended to this list and added to this dict afterwards
    assert len(calls[1].args[0]) == 2
    assert list(calls[1].output) == ['scores']
    # the tensors are the very ones: identity is what is followed
    assert calls[1].args[0][0] is calls[0].output[0]
    assert calls[1].kwargs['extra']['bias'] is calls[0].output[1]
    assert calls[2].args[0] is calls[1].output['scores']


def test_tensors_in_order_and_containers_keep_their_type() -> None:
    a, b, c, d = torch.arange(4.0)
    data = OrderedDict(x=[a, (b, 'text', None)], y=Sizes(c, {'z': d}), n=1)
    assert [float(t) for t in tensors_in(data)] == [0, 1, 2, 3]
    assert tensors_in('text') == tensors_in(None) == []

    model = nn.ModuleList([nn.Identity()])
    with record(model, seams('0.forward')) as calls:
        model[0](data)
    (copied,) = calls[0].args
    assert copied is not data
    assert type(copied) is OrderedDict
    assert type(copied['y']) is Sizes
    assert copied['y'].feature['z'] is d


def test_random_draws_inside_a_seam_are_the_students() -> None:
    student, _ = detector_pair()
    teacher = copy.deepcopy(student)
    torch.manual_seed(1)
    with record(student, SEAMS) as calls:
        student(image(), noise=1.0)
        torch.rand(3)
        student(image(), noise=1.0)
    torch.rand(5)
    stream = torch.get_rng_state()
    made = repeat(teacher, calls, SEAMS)
    # the student's stream goes on as if there had been no teacher
    assert torch.equal(torch.get_rng_state(), stream)
    ours = [call.output['scores'] for call in calls if call.path == 'head.forward']
    theirs = [call.output['scores'] for call in made if call.path == 'head.forward']
    assert not torch.equal(ours[0], ours[1])
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_an_error_of_the_teacher_leaves_generators_and_methods_as_they_were() -> None:
    student, teacher = detector_pair()
    with record(student, SEAMS) as calls:
        student(image(), noise=1.0)
    teacher.box_head.factor = None  # type: ignore[assignment]
    stream = torch.get_rng_state()
    message = r'^self_distill: the teacher cannot repeat box_head\.forward, .*TypeError'
    with pytest.raises(RuntimeError, match=message):
        repeat(teacher, calls, SEAMS)
    assert torch.equal(torch.get_rng_state(), stream)
    assert 'extract_feat' not in vars(teacher)
    assert 'forward' not in vars(teacher.head)


class WithLoss(Detector):
    """Calls a method of which only the arguments matter."""

    def __init__(self) -> None:
        super().__init__()
        self.losses_computed = 0

    def loss(self, scores: Tensor, *, targets: Tensor) -> Tensor:
        self.losses_computed += 1
        return F.mse_loss(scores, targets)

    def forward(self, image: Tensor, noise: float = 0) -> Tensor:
        feats = self.extract_feat(image)
        loss = self.loss(feats[0], targets=image)
        result: Tensor = loss * self.box_head(feats[1])
        return result


def test_observed_calls_are_not_made_and_show_the_teachers_arguments() -> None:
    student, teacher = WithLoss(), WithLoss()
    with torch.no_grad():
        teacher.backbone.factor.fill_(7.0)
    paths = ['extract_feat', 'loss', 'box_head.forward']
    observed = [Seam(path, repeat=path != 'loss') for path in paths]
    x = image()
    with record(student, observed) as calls:
        student(x)
    made = repeat(teacher, calls, observed)
    assert student.losses_computed == 1
    assert teacher.losses_computed == 0
    assert [call.path for call in made] == paths
    assert torch.equal(made[1].args[0], 7 * x)
    assert made[1].kwargs['targets'] is x
    assert made[1].output is None
    assert float(calls[1].output.detach()) == F.mse_loss(2 * x, x)
    assert torch.equal(made[2].output, 5 * (7 * x + 1))


def test_methods_are_put_back() -> None:
    student, _ = detector_pair()

    def own_forward(x: Tensor) -> Tensor:
        return x - 1

    # an attribute of the object itself, as compiling or patching leaves it
    student.box_head.forward = own_forward  # type: ignore[method-assign]
    with record(student, SEAMS):
        assert 'extract_feat' in vars(student)
        assert student.box_head.forward is not own_forward
        assert torch.equal(student.box_head(image()), image() - 1)
    assert 'extract_feat' not in vars(student)
    assert 'forward' not in vars(student.head)
    assert student.box_head.forward is own_forward

    with pytest.raises(ZeroDivisionError), record(student, SEAMS) as calls:
        student(image())
        raise ZeroDivisionError
    assert len(calls) == 4
    assert 'extract_feat' not in vars(student)
    assert student.box_head.forward is own_forward


def test_an_error_inside_a_seam_does_not_shift_later_depths() -> None:
    student, _ = detector_pair()
    with record(student, SEAMS) as calls:
        with pytest.raises(TypeError):
            student.head([image()], 'no rois', extra=dict(bias=0))
        student(image())
    assert [call.depth for call in calls] == [0] * 5
    assert calls[0].output is None
    assert calls[2].output is not None


def test_recording_leaves_other_objects_of_the_class_alone() -> None:
    student, other = detector_pair()
    with record(student, SEAMS) as calls:
        other(image())
    assert calls == []


def test_a_model_can_be_copied_and_pickled_between_recordings() -> None:
    student, _ = detector_pair()
    with record(student, SEAMS) as first:
        student(image())
    twin = copy.deepcopy(student)
    stored = pickle.loads(pickle.dumps(student))
    with record(twin, SEAMS) as calls, record(stored, SEAMS) as stored_calls:
        twin(image())
        stored(image())
    assert len(first) == len(calls) == len(stored_calls) == 4
    assert torch.equal(calls[0].output[0], first[0].output[0])


def test_resolve_finds_methods_modules_and_list_elements() -> None:
    model = nn.ModuleDict(dict(heads=nn.ModuleList([Scale(1.0), Scale(2.0)])))
    heads: Any = model['heads']
    assert resolve(model, 'heads.1.forward') == (heads[1], 'forward')
    assert resolve(model, 'heads.0') == (heads, '0')
    student, _ = detector_pair()
    assert resolve(student, 'extract_feat') == (student, 'extract_feat')


@pytest.mark.parametrize('path', ['head.forwrad', 'neck.forward', 'extract'])
def test_an_unknown_seam_is_an_error_and_nothing_is_replaced(path: str) -> None:
    student, _ = detector_pair()
    name = path.split('.')[-1] if path != 'neck.forward' else 'neck'
    unknown = [*SEAMS, Seam(path)]
    with pytest.raises(AttributeError, match=name), record(student, unknown):
        pass
    assert 'extract_feat' not in vars(student)
