"""The student sees a view, and its teacher the clean image: by hand."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from helpers import Scale, added
from images import ImageToy, brighter, images, losses
from torch import Tensor, nn
from toys import distilled


def gaps(distiller: Any) -> dict[str, float]:
    return {
        name: float(loss.detach()) for name, loss in added(losses(distiller)).items()
    }


def test_at_equal_weights_a_term_is_what_the_view_makes_of_it() -> None:
    student = ImageToy().eval()
    with distilled(student, {}, view=brighter) as distiller:
        for _ in range(2):
            # 2 (x + 1) against 2 x, and 6 (x + 1) against 6 x
            assert gaps(distiller) == dict(features=2.0, logits=6.0)
        # the student's own loss is of what it sees
        loss = losses(distiller)['loss_cls']
        assert float(loss.detach()) == float((6 * images(1)).square().mean())


def test_without_a_view_both_see_the_same() -> None:
    with distilled(ImageToy().eval(), {}) as distiller:
        assert gaps(distiller) == dict(features=0.0, logits=0.0)


def test_the_image_is_not_changed() -> None:
    batch = images()
    with distilled(ImageToy().eval(), {}, view=brighter) as distiller:
        distiller.student(batch, mode='loss')
    assert torch.equal(batch, images())


def test_the_view_alone_is_an_augmentation() -> None:
    student = ImageToy().eval()
    with distilled(student, {}, view=brighter, loss_weight=0.0) as distiller:
        found = losses(distiller)
        assert float(found['loss_cls'].detach()) == float(
            (6 * images(1)).square().mean()
        )
        assert distiller.computed == 0
        assert float(found['loss_sd_logits']) == 0


class Reshaping(ImageToy):
    """Takes frames (N, T, C, H, W), and gives its backbone a part of them."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def logits(self, inputs: Tensor) -> Any:
        return super().logits(self.part(inputs))


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    'a frame': lambda x: x[:, 1],
    'all frames as images': lambda x: x.flatten(0, 1),
    'a channel of some rows': lambda x: x[:, 0, :, 1:3],
    'transposed': lambda x: x[:, 0].transpose(2, 3),
}


@pytest.mark.parametrize('part', PARTS)
def test_the_teacher_is_given_the_same_part_of_the_clean_images(part: str) -> None:
    student = Reshaping(PARTS[part]).eval()
    student.norm = nn.Identity()  # type: ignore[assignment]
    frames = images().view(2, 1, 3, 4, 4).repeat(1, 2, 1, 1, 1)
    with distilled(student, {}, view=brighter):
        for _ in range(2):
            found = added(student(frames, mode='loss'))
            assert float(found['features'].detach()) == 2.0
            assert float(found['logits'].detach()) == 6.0


class Apart(ImageToy):
    """Is given a list of images (1, C, H, W), which may be slices of one tensor."""

    def logits(self, inputs: Any) -> Any:
        return super().logits(inputs[1])


def test_images_that_are_slices_of_one_tensor_are_each_its_own() -> None:
    with distilled(Apart().eval(), {}, view=brighter) as distiller:
        for _ in range(2):
            found = added(distiller.student([*images().split(1)], mode='loss'))
            assert float(found['features'].detach()) == 2.0
            assert float(found['logits'].detach()) == 6.0


def test_what_is_computed_of_the_image_between_calls_is_refused() -> None:
    student = Reshaping(lambda x: 2 * x).eval()
    message = r'extract_feat: its argument inputs .* depends on .*the perturbed image'
    with distilled(student, {}, view=brighter) as distiller, pytest.raises(
        RuntimeError, match=message
    ):
        losses(distiller)
    # both see the same without one, and nothing is in the way
    with distilled(student, {}) as distiller:
        assert gaps(distiller) == dict(features=0.0, logits=0.0)


def test_a_module_between_calls_is_repeated_on_the_clean_image() -> None:
    student = Reshaping(lambda x: x).eval()
    student.part = Scale(5.0)
    with distilled(student, {}, view=brighter) as distiller:
        assert gaps(distiller) == dict(features=10.0, logits=30.0)
        assert distiller.labeled.found == ['part.forward']


def test_a_frozen_part_is_noticed_with_a_view_too() -> None:
    student = ImageToy().eval()
    student.backbone.requires_grad_(False)
    student.norm.requires_grad_(False)
    terms: Any = dict(deep=dict(type='FeatureMSELoss', site='backbone'))
    message = r"^terms\.deep: no gradient reaches the student at the site 'backbone'"
    for view in (None, brighter):
        with distilled(student, {}, terms=terms, view=view) as distiller, pytest.raises(
            ValueError, match=message
        ):
            losses(distiller)


BEFORE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    'in place': (lambda x: x.mul_(2.0), r'changes the image in place \(mul_\)'),
    'without gradient': (
        lambda x: torch.no_grad()(lambda: 2 * x)(),
        r'extract_feat: its argument inputs .* the perturbed image',
    ),
    'a copy': (lambda x: x.detach().clone(), 'extract_feat: its argument inputs'),
    'a copy in another dtype': (
        lambda x: x.double().float(),
        'extract_feat: its argum',
    ),
}


@pytest.mark.parametrize('case', BEFORE)
def test_whatever_is_done_to_the_image_between_calls_is_noticed(case: str) -> None:
    part, message = BEFORE[case]
    with distilled(
        Reshaping(part).eval(), {}, view=brighter
    ) as distiller, pytest.raises(RuntimeError, match=message):
        losses(distiller)


@pytest.mark.parametrize('make', [torch.ones_like, lambda x: x.new_ones(x.shape)])
def test_what_has_only_the_images_shape_is_the_same_for_both(make: Any) -> None:
    class Masked(ImageToy):
        def extract_feat(self, inputs: Tensor, mask: Any = 1) -> Any:
            return super().extract_feat(inputs * mask)

        def logits(self, inputs: Tensor) -> Any:
            return self.bbox_head(self.extract_feat(inputs, make(inputs)))

    with distilled(Masked().eval(), {}, view=brighter) as distiller:
        assert gaps(distiller) == dict(features=2.0, logits=6.0)
        assert distiller.labeled.found == []


def test_a_view_of_no_image_is_an_error() -> None:
    student = ImageToy().eval()
    with distilled(student, {}, view=brighter), pytest.raises(
        ValueError, match=r'^view: the model is given no image'
    ):
        student(images().byte(), mode='loss')


def test_the_students_images_need_no_gradient() -> None:
    asked = []
    student = ImageToy().eval()
    with distilled(student, {}, view=brighter) as distiller:
        student.norm.register_forward_pre_hook(
            lambda _, args: asked.append(args[0].requires_grad)
        )
        for _ in range(2):
            losses(distiller)
    assert asked == [False, False]


def test_images_in_dicts_and_half_precision() -> None:
    class Named(ImageToy):
        def logits(self, inputs: Any) -> Any:
            return super().logits(inputs['img'])

    student = Named().eval().bfloat16()
    with distilled(student, {}, view=brighter) as distiller:
        batch = dict(img=torch.ones(2, 3, 4, 4).bfloat16(), count=torch.tensor(3))
        found = added(student(batch, mode='loss'))
        assert float(found['features'].detach()) == 2.0
        assert distiller.labeled.shapes['features'] == ['2x3x4x4']
