"""Pictures of student and teacher next to each other, while a run is validated."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any, Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmselfdistill.core.distiller import Distiller
from mmselfdistill.errors import check_bool, check_number, check_whole

from .base import DistillHook
from .run import metainfo_of
from .settings import check_arguments
from .validation import predict


@HOOKS.register_module()
class DistillVisualizationHook(Hook):
    r"""Shows the predictions of student and teacher, and where they differ.

    It goes next to a hook of self-distillation. At each validation it sends pictures to
    the ``visualizer`` of the run, so to each of its ``vis_backends``: files,
    TensorBoard, Weights & Biases. A picture is named ``student_teacher_`` and the
    file's name; its step is the iteration. Training is not changed. What the panel of
    differences shows depends on the model:

    - detectors: the boxes of one of them alone, and pairs of two classes; in grey,
      pairs of one class, with the difference of the scores. Boxes with an IoU of at
      least 0.5 are pairs. Of masks, the pixels of one of them alone;
    - segmentors: :math:`1 - \sum_c \min(p_c, q_c)` of the class probabilities at each
      pixel, or where labels differ, if there are no probabilities;
    - classifiers: the scores of the likeliest classes.

    Nothing is drawn before the first teacher, nor for other models, of which a warning
    tells.
    After a picture that cannot be drawn, or sent, the rest of its validation has none.
    Of images of one name in several folders, the second is named ``..._2``.

    Args:
        draw (bool): Whether to draw. Defaults to True.
        interval (int): One picture in each ``interval`` batches of a validation, from
            the first on: its first image. These are the same images at each validation
            if its loader does not shuffle. Defaults to 50.
        score_thr (float): Boxes below it are left out, in [0, 1]. Defaults to 0.3.
        backend_args (dict, optional): Of the file backend that images are read by.
            Defaults to None.
        **unknown: Nothing; taken to name what was meant in the message.

    Raises:
        ValueError: If a value is wrong.
    """

    def __init__(
        self,
        draw: bool = True,
        interval: int = 50,
        score_thr: float = 0.3,
        backend_args: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        check_arguments(type(self), type(self), unknown)
        self.draw = check_bool('draw', draw)
        self.interval = check_whole('interval', interval, 1)
        self.score_thr = check_number('score_thr', score_thr, 0.0, 1.0)
        if not isinstance(backend_args, (dict, type(None))):
            raise ValueError(
                f'backend_args: expected a dict or None, but got {backend_args!r}'
            )
        self.backend_args = backend_args
        self._warned = False
        self._names: Counter[str] = Counter()

    def before_train(self, runner: Runner) -> None:
        """Say so if there is nothing to draw."""
        self._warned = False
        if self.draw and _distiller(runner) is None:
            self._warn(runner, 'the run has no hook of self-distillation')

    def before_val_epoch(self, runner: Runner) -> None:
        """Start a set of pictures; what could not be drawn may be drawn now."""
        self._warned = False
        self._names.clear()

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw the first image of the batch, if it is due."""
        due = self.draw and not self._warned and batch_idx % self.interval == 0
        # other processes wait at the end of the validation
        if not due or not is_main_process():
            return
        distiller = _distiller(runner)
        if distiller is None or distiller.teacher is None or not outputs:
            return
        try:
            # MMPretrain writes what it predicts into the samples that it is given
            one = copy.deepcopy(outputs[0])
            other = predict(runner, distiller, copy.deepcopy(data_batch))[0]
            # what is validated may be the teacher
            student, teacher = (other, one) if distiller.predicts else (one, other)
            # a run that draws nothing does not import matplotlib's figures
            from mmselfdistill.visualization.samples import draw_samples

            meta = metainfo_of(runner.val_dataloader.dataset)
            picture = draw_samples(
                student, teacher, meta, self.score_thr, self.backend_args
            )
            name = self._name(Path(student.img_path).stem)
            runner.visualizer.add_image(name, picture, step=runner.iter)
        except Exception as error:  # a picture is not worth a run
            self._warn(runner, f'{type(error).__name__}: {error}')

    def _name(self, stem: str) -> str:
        # frames of two videos may have one name
        self._names[stem] += 1
        count = self._names[stem]
        return f'student_teacher_{stem}' + (f'_{count}' if count > 1 else '')

    def _warn(self, runner: Runner, why: str) -> None:
        runner.logger.warning(f'DistillVisualizationHook: nothing is drawn: {why}.')
        self._warned = True


def _distiller(runner: Runner) -> Distiller | None:
    hooks = [hook for hook in runner.hooks if isinstance(hook, DistillHook)]
    return hooks[0].distiller if hooks else None
