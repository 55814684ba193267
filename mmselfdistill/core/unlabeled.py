"""Images without labels: the student runs on them, and its teacher repeats it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

import torch
from mmengine.dist import get_rank
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmselfdistill.compat import DEVICE_ERRORS
from mmselfdistill.containers import tensors_in
from mmselfdistill.core.comparison import Comparison
from mmselfdistill.core.preprocessor import complete, preprocessor_of
from mmselfdistill.core.streams import forked_rng
from mmselfdistill.core.terms import Term
from mmselfdistill.core.unmoved import Spare
from mmselfdistill.families import find_plan
from mmselfdistill.families.plan import Plan
from mmselfdistill.families.shared import label_map, needs_of
from mmselfdistill.images import Batches
from mmselfdistill.seeds import seed_of
from mmselfdistill.views import View

# the label that transforms fill with, around a rotated image
_FILL = 255


class Unlabeled:
    """A source of images without labels, and how the student runs on them.

    Args:
        student (nn.Module): The model, not its DDP wrapper.
        plan (Plan): What its family says of it.
        batches (Batches): Yields what the model's ``data_preprocessor`` takes: lists
            of images and of data samples.
        weight (float): Multiplies all terms there. Defaults to 1.0.
        view (View, optional): What the student sees. Defaults to None: the images, as
            its teacher.
        statistics (bool): Whether these images move the running statistics of the
            student's norms, and other buffers. Defaults to False.
        confidence (float, optional): See :func:`sure_pixels`. Defaults to None: all
            pixels count alike.

    Attributes:
        batches (Batches): As given; order and transforms depend on its seed.
        skipped (int): The number of images that could not be loaded, up to the last
            batch that was used up.
        comparison (Comparison): Of these batches.

    Raises:
        ValueError: If the model needs more than an image.
    """

    def __init__(
        self,
        student: nn.Module,
        plan: Plan,
        batches: Batches,
        weight: float = 1.0,
        view: View | None = None,
        statistics: bool = False,
        confidence: float | None = None,
    ) -> None:
        check_takes_images(student)
        self.batches = batches
        self.skipped = 0
        self.weight = weight
        self.view = view
        self.statistics = statistics
        self.confidence = confidence
        self.comparison = Comparison(student, plan)
        # the trained model, where another one holds it
        self._model: Any = student.get_submodule(plan.inner)
        self._inner = bool(plan.inner)
        self._run = plan.run
        self._moving: list[nn.Module] = []
        self._spare = Spare()
        self._held: tuple[Any, Any, list[dict[str, Any]]] | None = None

    @property
    def used(self) -> int:
        """The number of batches that were used up; set it to go on from there."""
        return self.batches.drawn - (self._held is not None)

    @used.setter
    def used(self, count: int) -> None:
        self.batches.drawn = count
        self.batches.skipped = self.skipped
        self._held = None

    def next(self, advance: bool) -> tuple[Any, Any, list[dict[str, Any]]]:
        """Return images and data samples of a batch, as the model takes them.

        Args:
            advance (bool): Whether the batch is used up: one that is only looked at
                comes again.

        Returns:
            tuple: The images, the data samples, and what is known of each image: its
            ``metainfo``, and as ``shown`` (H, W) its pixels that no transform made up.

        Raises:
            ValueError: If the model's preprocessor does not take them.
        """
        if self._held is None:
            batch = next(self.batches)
            # before they are on the device
            filled = [_is_filled(sample) for sample in batch['data_samples']]
            _note_sizes(batch['inputs'], batch['data_samples'])
            data = self._preprocessed(batch)
            inputs, samples = data['inputs'], data['data_samples']
            bare = without_labels(samples, inputs)
            metas = [dict(each.metainfo) for each in bare]
            for meta, sample, is_filled in zip(metas, samples, filled):
                if is_filled:
                    meta['shown'] = label_map(sample)[0] != _FILL
            self._held = inputs, bare, metas
        held = self._held
        if advance:
            self._held = None
            self.skipped = self.batches.skipped
        return held

    def _preprocessed(self, batch: Any) -> Any:
        preprocess = preprocessor_of(self.comparison.student, self._model)
        # before it changes them
        sizes = [tuple(getattr(each, 'shape', ())) for each in batch['inputs']]
        try:
            complete(preprocess, batch)
            with forked_rng():
                torch.manual_seed(seed_of(self.batches.drawn, get_rank()))
                return preprocess(batch, True)
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            raise ValueError(
                f'unlabeled: the data_preprocessor of {type(self._model).__name__} '
                f'fails on images of the sizes {sizes}: {type(error).__name__}: '
                f'{error}. Let unlabeled.pipeline make them as those with labels are'
            ) from error

    def forward(self, stock: Callable[..., Any], inputs: Any, samples: Any) -> Any:
        """Run the model up to its predictions, without a loss.

        Args:
            stock (Callable): The student's own ``forward``.
            inputs (Any): The images.
            samples (Sequence): Data samples without labels.

        Raises:
            ValueError: If it cannot run without labels.
        """
        forward = self._model.forward if self._inner else stock
        try:
            if self._run is not None:
                return self._run(self._model, inputs, samples)
            return forward(inputs, samples, mode='tensor')
        except Exception as error:
            if self.comparison.checked:
                raise
            raise ValueError(
                f'unlabeled: {type(self._model).__name__} does not run on images '
                f'without labels: {type(error).__name__}: {error}'
            ) from error

    @contextmanager
    def apart(self, seed: Sequence[int], active: bool) -> Iterator[None]:
        """Run something that moves neither random streams nor, unless asked, buffers.

        Args:
            seed (Sequence[int]): The run's seed, and the iteration.
            active (bool): Whether it is more than a trial.
        """
        if not self.comparison.checked:
            # a norm of one's own or a queue too, which may begin to move later
            self._moving = [m for m in self.comparison.student.modules() if m._buffers]
            self._spare = Spare()
        held = [] if self.statistics and active else self._moving
        with forked_rng(), self._spare.held(m for m in held if m.training):
            torch.manual_seed(seed_of(*seed, get_rank()))
            yield


def check_takes_images(student: nn.Module) -> None:
    """See that a model, or the one inside that it trains, needs no more than images.

    Raises:
        ValueError: If it does.
    """
    inner = student.get_submodule(find_plan(student).inner)
    needs = needs_of(student) or needs_of(inner)
    if needs:
        raise ValueError(
            f'unlabeled: {type(inner).__name__} does not run on images without labels: '
            f'it needs {needs}; remove unlabeled'
        )


def check_confidence(student: nn.Module, plan: Plan, terms: Sequence[Term]) -> None:
    """See that a term on images without labels uses the confidence.

    Raises:
        ValueError: If none does.
    """
    using = [site.name for site in plan.sites if site.by_confidence]
    if not using:
        raise ValueError(
            f'unlabeled.confidence: a {plan.name} ({type(student).__name__}) has no '
            'pixels of classes, and is weighted by the confidence of its teacher '
            'without it; remove it'
        )
    if not any(term.site.by_confidence for term in terms if term.on != 'labeled'):
        raise ValueError(
            'unlabeled.confidence: no term on images without labels uses it; add one '
            f'at the site {" or ".join(map(repr, using))}, or remove it'
        )


def _is_filled(sample: Any) -> bool:
    found = label_map(sample)
    return found is not None and bool((found == _FILL).any())


def _note_sizes(images: Sequence[Any], samples: Sequence[Any]) -> None:
    """Note each image's size where the transform that resized it has not."""
    for image, sample in zip(images, samples):
        size = tuple(getattr(image, 'shape', ())[-2:])
        noted = getattr(sample, 'img_shape', None)
        if noted is not None and len(size) == 2 and tuple(noted[:2]) != size:
            sample.set_metainfo(dict(img_shape=size))


def without_labels(samples: Sequence[Any], inputs: Any = None) -> list[Any]:
    """Return data samples that keep what is known of an image, and no annotation.

    Detectors find no objects in them: some look at their number.

    Args:
        samples (Sequence): Data samples.
        inputs (Any): The padded images (N, C, H, W), whose size is noted. Defaults to
            None: they are no batch yet.
    """
    # MMSegmentation notes it of images with labels alone
    whole = tuple(inputs.shape[-2:]) if isinstance(inputs, Tensor) else None
    size = {} if whole is None else dict(batch_input_shape=whole)
    found = []
    for sample in samples:
        metainfo = {**sample.metainfo, **size}
        if metainfo.get('flip'):
            # a cascade of masks, run as in inference, would flip its masks back
            metainfo.update(flip=False, flip_direction=None)
        bare = type(sample)(metainfo=metainfo)
        if hasattr(sample, 'gt_instances'):
            device = next(
                (t.device for t in tensors_in(sample.gt_instances)), torch.device('cpu')
            )
            bare.gt_instances = InstanceData(
                bboxes=torch.zeros(0, 4, device=device),
                labels=torch.zeros(0, dtype=torch.long, device=device),
            )
        found.append(bare)
    return found
