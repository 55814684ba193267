"""A student that is being distilled: interrupted, copied, pickled, and let go."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Iterator

import pytest
import torch
from helpers import Scale, values_of
from test_flow import AdaptedToy
from torch import Tensor, nn
from toys import OTHERS, TERMS, Toy, distilled, set_factors, signs, step

from mmselfdistill.core.attached import release
from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher

GAPS = dict(features=3, logits=29)


class InterruptedToy(Toy):
    """It may be stopped: in its features, in an adapter, in its head, or after all."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = Scale(1.0)
        self.stop: tuple[str, type[BaseException]] | None = None

    def reach(self, place: str) -> None:
        if self.stop is not None and self.stop[0] == place:
            raise self.stop[1]

    def extract_feat(self, inputs: Tensor) -> Any:
        x = self.backbone(inputs)
        self.reach('features')
        return x

    def logits(self, inputs: Tensor) -> Any:
        x = self.adapter(self.extract_feat(inputs))
        self.reach('between')
        logits = self.bbox_head(x)
        self.reach('end')
        return logits


class Interrupting(Scale):
    stop: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.stop is not None:
            raise self.stop
        return super().forward(x)


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    """Return what each module holds, with copies of the tables of its hooks."""
    return [
        {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(module).items()
            if name not in ('runs', 'stop')
        }
        for module in model.modules()
    ]


PLACES = ['features', 'between', 'end']
ENDS = [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError]


@pytest.mark.parametrize('later', [False, True], ids=['first', 'later'])
@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('end', ENDS)
def test_an_interruption_leaves_the_model_as_it_was(
    end: type[BaseException], place: str, later: bool
) -> None:
    student = InterruptedToy()
    # a user's hook, of the kind that is looked at
    student.backbone.register_forward_hook(lambda *_: None)
    before = attributes(student)
    with distilled(student, OTHERS) as distiller:
        attached = attributes(student)
        if later:
            assert step(distiller) == GAPS
        student.stop = (place, end)
        with pytest.raises(end):
            step(distiller)
        assert attributes(student) == attached
        student.stop = None
        # it goes on as if nothing had been
        for _ in range(2):
            assert step(distiller) == GAPS
        assert attributes(student) == attached
        student.stop = (place, end)
        with pytest.raises(end):
            step(distiller)
    assert attributes(student) == before
    student.stop = None
    assert student(signs(), mode='loss').keys() == {'loss_cls'}
    distiller.attach()
    assert step(distiller) == GAPS
    distiller.detach()
    assert attributes(student) == before


@pytest.mark.parametrize('end', ENDS)
def test_an_interruption_inside_of_the_teacher(end: type[BaseException]) -> None:
    student = Toy()
    student.bbox_head = Interrupting(3.0)
    before = attributes(student)
    with distilled(student, OTHERS) as distiller:
        teacher: Any = distiller.teacher
        assert step(distiller) == GAPS
        held, stream = attributes(teacher), torch.get_rng_state()
        teacher.bbox_head.stop = end
        with pytest.raises(end):
            step(distiller)
        assert attributes(teacher) == held
        assert torch.equal(torch.get_rng_state(), stream)
        assert torch.is_grad_enabled()
        teacher.bbox_head.stop = None
        assert step(distiller) == GAPS
    assert attributes(student) == before


def test_attaching_and_detaching_twice_is_doing_it_once() -> None:
    student = Toy()
    distiller = build_distiller(student, TERMS)
    distiller.teacher = make_teacher(student)
    set_factors(distiller.teacher, OTHERS)
    before = attributes(student)
    for _ in range(2):
        distiller.attach()
        distiller.attach()
        assert step(distiller) == GAPS
        distiller.detach()
        assert attributes(student) == before
        distiller.detach()
        assert attributes(student) == before
    assert (distiller.forwards, distiller.computed) == (2, 2)


def test_a_forward_that_the_user_patched_is_extended_and_put_back() -> None:
    student = Toy()
    stock = student.forward

    def patched(*args: Any, **kwargs: Any) -> Any:
        return {**stock(*args, **kwargs), 'loss_more': torch.ones(())}

    student.forward = patched  # type: ignore[method-assign]
    with distilled(student, OTHERS) as distiller:
        for _ in range(2):
            losses = student(signs(), mode='loss')
            assert float(losses['loss_sd_logits'].detach()) == 29
            assert float(losses['loss_more']) == 1
        assert distiller.forwards == 2
    assert student.forward is patched


def test_a_forward_that_the_user_wraps_later_stays_and_is_not_distilled() -> None:
    student = Toy()
    distiller = build_distiller(student, TERMS)
    distiller.teacher = make_teacher(student)
    set_factors(distiller.teacher, OTHERS)
    distiller.attach()
    inner = student.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return {**inner(*args, **kwargs), 'loss_more': torch.ones(())}

    student.forward = wrapped  # type: ignore[method-assign]
    with distiller.attachment.set_aside():
        assert 'forward' not in vars(student)
    assert step(distiller) == GAPS
    distiller.detach()
    # nor where a hook puts back what it had found
    for forward in (wrapped, inner):
        student.forward = forward  # type: ignore[method-assign]
        losses = student(signs(), mode='loss')
        assert losses.keys() - {'loss_more'} == {'loss_cls'}
    assert distiller.computed == 1


def test_what_a_run_that_failed_has_left_is_taken_off_below_a_wrapper_too() -> None:
    student = Toy()
    first = build_distiller(student, TERMS)
    first.teacher = make_teacher(student)
    first.attach()
    step(first)
    inner = student.forward
    student.forward = lambda *args, **kwargs: inner(*args, **kwargs)  # type: ignore[method-assign]
    release(student)
    with distilled(student, OTHERS) as second:
        assert step(second) == GAPS
    assert first.computed == 1
    release(student)


def copied(model: Toy) -> Any:
    return copy.deepcopy(model)


def pickled(model: Toy) -> Any:
    return pickle.loads(pickle.dumps(model))


def as_a_teacher(model: Toy) -> Any:
    return make_teacher(model)


@pytest.fixture(params=[copied, pickled, as_a_teacher])
def made(request: Any) -> Iterator[Any]:
    yield request.param


def test_a_copy_leaves_the_distiller_behind(made: Any) -> None:
    student = AdaptedToy(adapter=Scale(1.0))
    with distilled(student, OTHERS) as distiller:
        early = made(student)
        assert step(distiller) == GAPS
        late = made(student)
        assert step(distiller) == GAPS
        for twin in (early, late):
            counts = (student.backbone.runs, twin.backbone.runs)
            set_factors(twin, {'backbone': 1.0})
            losses = twin(signs(), mode='loss')
            # its own weights: (3 * 1) ** 2, where the student's is (3 * 2) ** 2
            assert losses.keys() == {'loss_cls'}
            assert float(losses['loss_cls'].detach()) == 9
            assert float(student(signs(), mode='loss')['loss_cls'].detach()) == 36
            assert student.backbone.runs == counts[0] + 1
            assert twin.backbone.runs == counts[1] + 1
            assert twin.state_dict().keys() == student.state_dict().keys()
        values = values_of(late)
        set_factors(student, {'backbone': 4.0})
        assert all(torch.equal(t, values[name]) for name, t in values_of(late).items())
        assert distiller.forwards == 4
    # and it can be distilled itself
    twin = made(late)
    twin.requires_grad_(True)
    set_factors(twin, {'backbone': 2.0})
    with distilled(twin, OTHERS) as distiller:
        assert step(distiller) == GAPS
