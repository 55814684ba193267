"""Images without labels, by hand."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from helpers import Remembering, Scale, added, assert_bitwise, values_of
from images import ImageToy, Numbered, brighter, images, losses
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from torch import nn
from toys import OTHERS, TERMS, distilled

from mmselfdistill.core.comparison import Comparison
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.unlabeled import without_labels
from mmselfdistill.families.shared import unpadded


def settings(**more: Any) -> dict[str, Any]:
    return dict(unlabeled=dict(batches=Numbered(), **more))


def gaps(distiller: Distiller) -> dict[str, float]:
    found = added(losses(distiller))
    return {name: float(loss.detach()) for name, loss in found.items()}


def test_the_terms_are_computed_on_both_kinds_of_images() -> None:
    # by 2 and 6 against 5 and 35
    labeled = float(images().mean())
    with distilled(ImageToy().eval(), OTHERS, **settings(weight=0.5)) as distiller:
        for number in (1, 2, 3):
            mean = labeled + number
            assert gaps(distiller) == pytest.approx(
                dict(
                    features=3 * labeled,
                    logits=29 * labeled,
                    features_unlabeled=0.5 * 3 * mean,
                    logits_unlabeled=0.5 * 29 * mean,
                )
            )
        assert distiller.unlabeled is not None
        assert distiller.unlabeled.used == 3


class Listing(Remembering):
    """The same, with its memory in a list that is empty at first."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.memory = self.held.pop() if self.held else torch.zeros(())
        result = super().forward(x)
        self.held.append(result.detach())
        self.memory = 0.0
        return result


@pytest.mark.parametrize('head', [Remembering, Listing])
def test_a_memory_goes_from_images_with_labels_to_those_without(head: Any) -> None:
    student = ImageToy().eval()
    student.bbox_head = head()
    labeled, ours, theirs = float(images().mean()), 0.0, 0.0
    with distilled(student, OTHERS, **settings()) as distiller:
        for number in (1, 2, 3):
            found, expected = gaps(distiller), {}
            for name, mean in ('', labeled), ('_unlabeled', labeled + number):
                ours, theirs = 6 * mean + ours / 2, 35 * mean + theirs / 2
                expected[f'logits{name}'] = theirs - ours
            assert {k: v for k, v in found.items() if 'logits' in k} == expected


ONLY_HERE = dict(
    features=dict(TERMS['features'], on='unlabeled'),
    logits=dict(TERMS['logits'], on='unlabeled'),
)


@pytest.mark.parametrize(
    ('kind', 'iterations'),
    [
        (dict(every=2), 2),
        (dict(terms=ONLY_HERE), 1),
        # on images with labels, the head is not run
        (dict(terms=dict(TERMS, logits=ONLY_HERE['logits'])), 1),
    ],
)
def test_a_memory_of_a_teacher_that_rests_is_refused_here_too(
    kind: dict[str, Any], iterations: int
) -> None:
    student = ImageToy().eval()
    student.bbox_head = Remembering()
    with distilled(student, OTHERS, **kind, **settings()) as distiller:
        for _ in range(iterations):
            losses(distiller)
        with pytest.raises(RuntimeError, match='in which the teacher was not run'):
            losses(distiller)


def test_a_norm_that_trains_leaves_the_teacher_its_memory() -> None:
    found = []
    for trains in (True, False):
        student = ImageToy()
        student.norm.train(trains)
        student.bbox_head = Remembering()
        with distilled(student, OTHERS, **settings()) as distiller:
            # its statistics are put aside and back in each iteration
            found.append([gaps(distiller) for _ in range(4)])
    assert found[0] == found[1]


def test_a_batch_is_taken_before_the_labelled_forward_pass() -> None:
    student = ImageToy().eval()
    found: list[str] = []

    def prepared(batch: Any, training: bool) -> Any:
        found.append('copied')
        return batch

    student.data_preprocessor = prepared
    student.backbone.register_forward_hook(lambda *_: found.append('forward'))
    with distilled(student, OTHERS, every=2, **settings()) as distiller:
        for passes in (2, 1, 2):
            losses(distiller)
            # the second iteration rests, and the third finds what it has taken
            expected = ['copied'] * (distiller.forwards < 3) + ['forward'] * passes
            assert found == expected
            found.clear()


def test_a_batch_that_is_held_does_not_come_after_a_restart() -> None:
    with distilled(ImageToy(), {}, loss_weight=0.0, **settings()) as distiller:
        losses(distiller)
        assert distiller.unlabeled is not None
        distiller.unlabeled.used = 5
        assert distiller.unlabeled.used == 5
        assert float(distiller.unlabeled.next(True)[0][0, 0, 0, 0]) == 6


def test_its_own_view_and_that_of_images_with_labels() -> None:
    more = settings(view=lambda seen, *_: (seen + 2, seen))
    with distilled(ImageToy().eval(), {}, view=brighter, **more) as distiller:
        for _ in range(2):
            assert gaps(distiller) == dict(
                features=2.0, logits=6.0, features_unlabeled=4.0, logits_unlabeled=12.0
            )


def test_the_views_of_an_iteration_are_other_draws() -> None:
    seeds: list[int] = []

    def noted(seen: torch.Tensor, draw: torch.Generator, *_: Any) -> Any:
        seeds.append(draw.initial_seed())
        return seen + 1, seen

    with distilled(ImageToy(), {}, view=noted, **settings(view=noted)) as distiller:
        for _ in range(3):
            losses(distiller)
    assert len(seeds) == len(set(seeds)) == 6


def test_a_mixed_image_is_the_same_for_the_teacher() -> None:
    def mixed(seen: torch.Tensor, *_: Any) -> Any:
        clean = seen.flip(0)
        return clean + 1, clean

    with distilled(ImageToy().eval(), {}, **settings(view=mixed)) as distiller:
        assert gaps(distiller)['features_unlabeled'] == 2.0


@pytest.mark.parametrize('on', ['labeled', 'unlabeled', 'both'])
def test_a_term_says_where_it_is_computed(on: str) -> None:
    terms: Any = copy.deepcopy(TERMS)
    terms['logits'] = dict(terms['logits'], on=on)
    with distilled(ImageToy().eval(), {}, terms=terms, **settings()) as distiller:
        for _ in range(2):
            keys = {*gaps(distiller)} - {'features', 'features_unlabeled'}
            where = dict(labeled=['logits'], unlabeled=['logits_unlabeled'])
            assert keys == {*where.get(on, ['logits', 'logits_unlabeled'])}


def test_gradients_add_up() -> None:
    student = ImageToy().eval()
    found = []
    for more in ({}, settings()):
        with distilled(student, OTHERS, **more) as distiller:
            student.zero_grad()
            sum(added(losses(distiller)).values()).backward()  # type: ignore[union-attr]
            found.append(float(student.backbone.factor.grad))
    # d|2x - 5x|/d2 = -x, d|6x - 35x|/d2 = -3x
    mean = float(images().mean())
    assert found == pytest.approx([-4 * mean, -4 * mean - 4 * (mean + 1)])


@pytest.mark.parametrize('statistics', [False, True])
def test_at_weight_0_nothing_is_moved_and_no_batch_is_used(statistics: bool) -> None:
    plain, other = ImageToy(), ImageToy()
    torch.manual_seed(0)
    expected = [plain(images(), mode='loss') for _ in range(4)]
    after = torch.get_rng_state()
    buffers = values_of(plain)
    torch.manual_seed(0)
    schedule = dict(type='constant', begin=0.5)
    more = settings(statistics=statistics)
    with distilled(other, OTHERS, schedule=schedule, **more) as distiller:
        for one in expected:
            found = losses(distiller)
            for key, loss in one.items():
                assert torch.equal(found[key], loss)
            assert float(found['loss_sd_logits_unlabeled']) == 0
    assert torch.equal(torch.get_rng_state(), after)
    assert_bitwise(other, buffers)
    assert distiller.unlabeled is not None
    # it was looked at in the first iteration, and comes again
    assert distiller.unlabeled.used == 0
    assert float(distiller.unlabeled.next(True)[0][0, 0, 0, 0]) == 1


@pytest.mark.parametrize('statistics', [False, True])
def test_random_streams_and_statistics_at_work(statistics: bool) -> None:
    plain, other = ImageToy(), ImageToy()
    torch.manual_seed(0)
    expected = [plain(images(), mode='loss') for _ in range(3)]
    torch.manual_seed(0)
    with distilled(other, {}, **settings(statistics=statistics)) as distiller:
        for one in expected:
            # dropout draws what it would have drawn
            assert torch.equal(losses(distiller)['loss_drawn'], one['loss_drawn'])
    tracked = [int(model.norm.num_batches_tracked) for model in (plain, other)]
    assert tracked == [3, 6 if statistics else 3]
    same = torch.equal(plain.norm.running_mean, other.norm.running_mean)  # type: ignore[arg-type]
    assert same is not statistics


class OwnNorm(nn.Module):
    """A norm that is none of PyTorch's, and keeps the last maxima in a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('queue', torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean += x.detach().mean()
        self.queue = torch.cat([self.queue[1:], x.detach().amax()[None]])
        return x


@pytest.mark.parametrize('statistics', [False, True])
def test_buffers_of_ones_own_modules_are_as_statistics(statistics: bool) -> None:
    mean, largest = float(images().mean()), float(images().max())
    student: Any = ImageToy()
    student.dropout = OwnNorm()
    student.norm = nn.Identity()
    taught = distilled(student, {}, **settings(statistics=statistics))
    with taught as distiller:
        model: Any = distiller.student
        for number in (1, 2):
            distiller.student(images(), mode='loss')
            own = model.dropout
            drawn = sum(range(1, number + 1)) if statistics else 0
            twice = 2 if statistics else 1
            assert float(own.mean) == number * twice * mean + drawn + number
            last = largest + number if statistics else 1.0
            assert own.queue.tolist()[-1] == last


@pytest.mark.parametrize('frozen', [True, False])
def test_buffers_that_begin_to_move_later_are_put_back_too(frozen: bool) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.begun = False
            self.register_buffer('sum', torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and self.begun:
                self.sum += x.detach().mean()
            return x

    sums = []
    for more in ({}, settings()):
        student: Any = ImageToy()
        student.dropout = late = Late()
        late.begun = frozen
        with distilled(student, {}, **more) as distiller:
            for number in range(3):
                # unfrozen, or done with its warm-up
                late.train(not frozen or number > 0)
                late.begun = frozen or number > 0
                distiller.student(images(), mode='loss')
        sums.append(float(late.sum))
    # of two iterations, a mean of 1 each
    assert sums == [2.0, 2.0]


def test_what_is_frozen_and_has_a_buffer_runs_once() -> None:
    called: list[nn.Module] = []

    class Indexed(Scale):
        def __init__(self) -> None:
            super().__init__(2.0)
            self.register_buffer('index', torch.arange(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            called.append(self)
            return super().forward(x)

    class Plain(ImageToy):
        def extract_feat(self, inputs: torch.Tensor) -> Any:
            return self.backbone(inputs)

    student: Any = Plain()
    student.backbone = Indexed().requires_grad_(False)
    with distilled(student, {'bbox_head': 7.0}, **settings()) as distiller:
        for _ in range(4):
            called.clear()
            losses(distiller)
        assert called == [student.backbone] * 2


class Dividing(nn.Module):
    """Divides by a scale that it has just moved in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('scale', torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.scale += 1
        divided: torch.Tensor = x / self.scale
        return divided


def test_a_buffer_that_is_moved_and_used_has_its_gradient() -> None:
    student: Any = ImageToy()
    student.bbox_head = nn.Sequential(Scale(3.0), Dividing())
    with distilled(student, {}, **settings()) as distiller:
        for number in (1, 2):
            found = losses(distiller)
            sum(loss for key, loss in found.items() if 'loss' in key).backward()
            # once, by the images with labels
            assert float(student.bbox_head[1].scale) == 1 + number


def test_statistics_are_tracked_again_after_an_error() -> None:
    class Failing(ImageToy):
        fails = False

        def extract_feat(self, inputs: Any) -> Any:
            if self.fails and float(inputs[0, 0, 0, 0]) > 0:
                raise RuntimeError('out of memory')
            return super().extract_feat(inputs)

    student = Failing()
    with distilled(student, {}, **settings()) as distiller:
        losses(distiller)
        student.fails, buffers = True, dict(student.norm._buffers)
        with pytest.raises(RuntimeError, match=r'^out of memory'):
            losses(distiller)
        # the very same tensors
        for name, buffer in buffers.items():
            assert student.norm._buffers[name] is buffer


def refused(student: ImageToy, message: str, **more: Any) -> None:
    with distilled(student, {}, **settings(), **more) as distiller, pytest.raises(
        ValueError, match=message
    ):
        losses(distiller)


def test_a_model_that_needs_labels_is_refused_in_the_first_iteration() -> None:
    class Asking(ImageToy):
        def forward(self, inputs: Any, data_samples: Any = None, mode: str = '') -> Any:
            if mode == 'tensor':
                return data_samples[0].text
            return super().forward(inputs, data_samples, mode)

    schedule = dict(type='constant', begin=0.5)
    message = '^unlabeled: Asking does not run on images without labels: Attribute'
    refused(Asking(), message, schedule=schedule)


def test_a_site_that_these_images_do_not_reach_is_left_out() -> None:
    class Shy(ImageToy):
        """Its head is a part of its loss alone."""

        def forward(self, inputs: Any, data_samples: Any = None, mode: str = '') -> Any:
            if mode == 'tensor':
                return self.extract_feat(inputs)
            return super().forward(inputs, data_samples, mode)

    with distilled(Shy().eval(), {}, **settings()) as distiller:
        assert {*gaps(distiller)} == {'features', 'logits', 'features_unlabeled'}
        assert {*gaps(distiller)} == {'features', 'logits', 'features_unlabeled'}
    terms: Any = copy.deepcopy(TERMS)
    terms['logits'] = dict(terms['logits'], on='unlabeled')
    refused(Shy().eval(), r'^terms\.logits: the site .* no tensor', terms=terms)
    terms = dict(logits=dict(TERMS['logits']), features=None)
    refused(Shy().eval(), r'^unlabeled: no term can be computed', terms=terms)


@pytest.mark.parametrize('fails', [False, True])
def test_a_trial_teacher_of_the_first_generation_is_let_go(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = ImageToy().eval()
    with distilled(student, OTHERS, **settings()) as distiller:
        assert distiller.unlabeled is not None
        distiller.teacher, distiller.trial = None, distiller.teacher
        trial = weakref.ref(distiller.trial)
        if fails:
            # after the pass on images with labels
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(distiller.unlabeled, 'forward', lambda *_: 1 / 0)
                losses(distiller)
            assert distiller.trial is not None
        assert {*gaps(distiller).values()} == {0.0}
        assert distiller.trial is None
        gc.collect()
        assert trial() is None
        for each in distiller.comparisons():
            assert {*each.shapes} == {'features', 'logits'}
        assert distiller.unlabeled.used == 0


def test_what_is_kept_of_a_data_sample() -> None:
    from mmdet.testing import demo_mm_inputs

    (sample,) = demo_mm_inputs(1, [[3, 32, 48]], num_items=[4], with_mask=True)[
        'data_samples'
    ]
    sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    (bare,) = without_labels([sample])
    assert bare.metainfo.keys() == sample.metainfo.keys()
    # what runs as in inference does not flip its predictions back
    assert (bare.flip, bare.flip_direction) == (False, None)
    assert (sample.flip, sample.flip_direction) == (True, 'horizontal')
    assert [*bare.img_shape] == [32, 48]
    assert {*bare.keys()} == {'gt_instances'}
    assert bare.gt_instances.bboxes.shape == (0, 4)
    assert len(bare.gt_instances.labels) == 0
    assert len(sample.gt_instances) == 4


class Unequal(Numbered):
    """Two images, of which each is padded to the size of both."""

    def __next__(self) -> dict[str, Any]:
        sizes = (3, 40, 64), (3, 64, 16)
        return dict(
            inputs=[torch.zeros(size, dtype=torch.uint8) for size in sizes],
            data_samples=[SegDataSample(), SegDataSample()],
        )


def test_padding_is_known_without_a_map_of_labels() -> None:
    student = ImageToy()
    student.data_preprocessor = SegDataPreProcessor(size_divisor=32)
    with distilled(student, {}, unlabeled=dict(batches=Unequal())) as distiller:
        assert distiller.unlabeled is not None
        inputs, _, metas = distiller.unlabeled.next(False)
        shown = unpadded(metas, inputs.shape[-2:], inputs.device)
        assert shown is not None and shown.shape == (2, 64, 64)
        assert shown[0, :40].all() and shown[1, :, :16].all()
        assert shown.sum((1, 2)).tolist() == [40 * 64, 64 * 16]


class Resized(Unequal):
    """The same, of a transform that has not noted to which size it has resized."""

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(img_shape=(10, 10, 3)))
        return batch


def test_the_size_of_an_image_is_that_of_its_tensor() -> None:
    student = ImageToy()
    # it notes no size
    student.data_preprocessor = ImgDataPreprocessor()
    with distilled(student, {}, unlabeled=dict(batches=Resized())) as distiller:
        assert distiller.unlabeled is not None
        inputs, samples, _ = distiller.unlabeled.next(False)
        assert inputs.shape[-2:] == (64, 64)
        assert [each.img_shape for each in samples] == [(40, 64), (64, 16)]


class Rotated(Unequal):
    """The same, with a map of zeros that a transform has filled around an image."""

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        sizes = (1, 40, 64), (1, 64, 16)
        for sample, size in zip(batch['data_samples'], sizes):
            sample.gt_sem_seg = PixelData(data=torch.zeros(size, dtype=torch.long))
        batch['data_samples'][0].gt_sem_seg.data[:, :10, :30] = 255
        return batch


def test_pixels_that_a_transform_made_up_do_not_count() -> None:
    student = ImageToy()
    student.data_preprocessor = SegDataPreProcessor(size_divisor=32)
    with distilled(student, {}, unlabeled=dict(batches=Rotated())) as distiller:
        assert distiller.unlabeled is not None
        _, samples, metas = distiller.unlabeled.next(False)
        assert not any('gt_sem_seg' in each for each in samples)
        # a map of zeros says no more than the size
        assert ['shown' in meta for meta in metas] == [True, False]
        for side in (64, 32):
            shown = unpadded(metas, (side, side), torch.device('cpu'))
            count = 40 * 64 - 10 * 30, 64 * 16
            assert shown is not None
            found = (shown.sum((1, 2)) * (64 / side) ** 2).tolist()
            assert found == list(count)


def test_images_that_the_models_preprocessor_refuses_are_named() -> None:
    student = ImageToy()
    student.data_preprocessor = SegDataPreProcessor(size=(32, 32))
    message = (
        r'^unlabeled: the data_preprocessor of ImageToy fails on images of the sizes '
        r'\[\(3, 40, 64\), \(3, 64, 16\)\]: .*unlabeled\.pipeline'
    )
    with distilled(
        student, {}, unlabeled=dict(batches=Unequal())
    ) as distiller, pytest.raises(ValueError, match=message):
        losses(distiller)


def test_a_preprocessor_that_draws_moves_no_random_stream() -> None:
    student = ImageToy()
    student.data_preprocessor = lambda batch, training: torch.rand(3).sum() and batch
    with distilled(student, {}, **settings()) as distiller:
        assert distiller.unlabeled is not None
        torch.manual_seed(0)
        expected = torch.rand(2)
        torch.manual_seed(0)
        distiller.unlabeled.next(True)
        assert torch.equal(torch.rand(2), expected)


def test_modules_that_only_these_images_pass_are_repeated() -> None:
    class Longer(ImageToy):
        def __init__(self) -> None:
            super().__init__()
            self.more = Scale(5.0)

        def forward(self, inputs: Any, data_samples: Any = None, mode: str = '') -> Any:
            if mode == 'tensor':
                return self.bbox_head(self.more(self.extract_feat(inputs)))
            return super().forward(inputs, data_samples, mode)

    with distilled(Longer().eval(), {}, **settings(view=brighter)) as distiller:
        assert gaps(distiller)['logits_unlabeled'] == 30.0
        assert gaps(distiller)['logits_unlabeled'] == 30.0
        assert distiller.unlabeled is not None
        assert distiller.unlabeled.comparison.found == ['more.forward']
        assert distiller.labeled.found == []


def test_only_one_iteration_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = []
    watch = Comparison.watch

    def noted(self: Comparison, *args: Any) -> Any:
        watched.append(self)
        return watch(self, *args)

    monkeypatch.setattr(Comparison, 'watch', noted)
    terms: Any = {name: dict(cfg, on='unlabeled') for name, cfg in TERMS.items()}
    with distilled(ImageToy().eval(), {}, terms=terms, **settings()) as distiller:
        for _ in range(3):
            assert {*gaps(distiller)} == {'features_unlabeled', 'logits_unlabeled'}
        assert watched == distiller.comparisons()


def test_what_keeps_something_besides_norms_is_put_back() -> None:
    class Keeping(ImageToy):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3, track_running_stats=True)  # type: ignore[assignment]
            self.spectral = nn.utils.spectral_norm(nn.Linear(4, 4))

        def extract_feat(self, inputs: Any) -> Any:
            return super().extract_feat(inputs) + 0 * self.spectral(inputs)

    plain, other = Keeping(), Keeping()
    other.load_state_dict(plain.state_dict())
    for _ in range(2):
        plain(images(), mode='loss')
    with distilled(other, OTHERS, **settings()) as distiller:
        for _ in range(2):
            losses(distiller)
    assert_bitwise(other, values_of(plain))


def test_terms_of_these_images_go_with_their_weight() -> None:
    terms: Any = dict(TERMS, logits=dict(TERMS['logits'], on='unlabeled'))
    nothing: Any = dict(weight=0)
    with distilled(ImageToy(), {}, terms=terms, unlabeled=nothing) as distiller:
        assert {*gaps(distiller)} == {'features'}
        assert distiller.unlabeled is None
    with pytest.raises(ValueError, match=r"^terms\.logits\.on: 'unlabeled', but there"):
        distilled(ImageToy(), {}, terms=terms).__enter__()
