"""What a model family has to say: its seams, its sites, its default terms."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, ClassVar, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmselfdistill.replay import Call, tensors_in


@dataclass
class Pair:
    """One tensor as the student and as the teacher made it.

    Args:
        name (str): What it is, for messages: ``'logits, level 0'``.
        student (Tensor): (N, C) or (N, C, H, W), with gradient.
        teacher (Tensor): Same shape, without.
        context (dict): What a loss may need to know about it, by keyword: how
            logits become probabilities, which positions count.
    """

    name: str
    student: Tensor
    teacher: Tensor
    context: dict[str, Any] = field(default_factory=dict)


@dataclass
class Replayed:
    """One iteration, as sites read it.

    Args:
        calls (list[tuple[Call, Call]]): Each recorded call of the student with
            the teacher's version of it.
        data_samples (Sequence): The batch's annotations, as the model got them.
        teacher (nn.Module, optional): The teacher. Defaults to None: both calls
            are the student's, to see their shapes.
        predictions (list, optional): What a family has read from the calls, for
            all of its sites. Defaults to None: nothing yet.
    """

    calls: list[tuple[Call, Call]]
    data_samples: Sequence[Any]
    teacher: nn.Module | None = None
    predictions: list[Any] | None = None

    def of(self, path: str) -> list[tuple[Call, Call]]:
        """Return the calls of one seam, in order."""
        return [pair for pair in self.calls if pair[0].path == path]


Reader = Callable[[Replayed], List[Pair]]


class Family:
    """Models that are recorded and read in the same way.

    Any model with an ``extract_feat`` or a ``backbone`` is one of this kind, and
    offers the site ``features``. A subclass adds the seams and readers of its
    heads; it never imports a framework to recognise a model, but looks at the
    model's parts.

    Args:
        model (nn.Module): The student.
    """

    name = 'any model with a backbone'
    # the default term of each site, as a user would write it
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        'features': dict(type='PKDLoss', weight=0.5)
    }

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.features = feature_seam(model) or ''

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model is of this family."""
        return feature_seam(model) is not None

    def seams(self) -> list[str]:
        """Return the paths of the calls that the teacher repeats."""
        return [self.features, *head_seams(self.model)]

    def observed(self) -> list[str]:
        """Return the paths of calls of which only the arguments are read."""
        return []

    def state(self) -> dict[str, str]:
        """Return what a seam is told besides its arguments.

        A seam, and the attribute of its owner: a dict that other parts of the
        model fill. Modules in it stay each model's own.
        """
        return {}

    def shared(self) -> list[str]:
        """Return the paths of modules of which the teacher uses the student's.

        Or of parameters. Learned queries: they have no order that two models
        would agree on.
        """
        return []

    def kept(self) -> dict[str, tuple[str, ...]]:
        """Return what a model chooses within a seam, where the student's choice counts.

        A call inside of the seam, and the names of the keyword arguments that hold
        what was chosen.
        """
        return {}

    def readers(self) -> dict[str, Reader]:
        """Return the sites: how each is read from the calls of an iteration."""
        return {'features': partial(read_outputs, self.features, 'features')}

    def default_terms(self) -> dict[str, dict[str, Any]]:
        """Return the default term of each site that this model has."""
        sites = self.readers()
        return {name: dict(cfg) for name, cfg in self.defaults.items() if name in sites}

    def skipped(self) -> dict[str, str]:
        """Return what the model predicts that is not distilled, and why not."""
        return dict.fromkeys(unread_heads(self.model, []), UNREAD)


class Unknown(Family):
    """A model of which only modules can be named, by their path.

    The teacher repeats the calls of the model's direct parts.
    """

    name = 'unknown model'

    def seams(self) -> list[str]:
        """Return the ``forward`` of each direct part."""
        return [f'{name}.forward' for name, _ in self.model.named_children()]

    def readers(self) -> dict[str, Reader]:
        """Return no site: nothing is known of the parts."""
        return {}

    def skipped(self) -> dict[str, str]:
        """Return nothing: nothing is known of the parts."""
        return {}


# the call that makes a model's features, the first that there is
_FEATURES = (
    ('image_encoder', 'image_encoder.forward'),
    ('extract_feat', 'extract_feat'),
    ('backbone', 'backbone.forward'),
)
_HEADS = (
    'bbox_head',
    'mask_head',
    'panoptic_head',
    'decode_head',
    'segm_head',
    'query_head',
    'track_head',
    'semantic_head',
    'head',
)


def feature_seam(model: nn.Module) -> str | None:
    """Return the path of the call that makes a model's features."""
    # hasattr says no to a part that is registered as None
    paths = [path for name, path in _FEATURES if getattr(model, name, None) is not None]
    return paths[0] if paths else None


def head_seams(model: nn.Module) -> list[str]:
    """Return the ``forward`` of each head that the model has itself."""
    return [f'{path}.forward' for name in _HEADS for path in stages(model, name)]


UNREAD = 'it is not known how to read what it returns'


def unread_heads(model: nn.Module, read: Sequence[str]) -> list[str]:
    """Return the names of a model's heads besides those that are read."""
    return [
        name
        for name, part in model.named_children()
        if name.endswith('head')
        and name not in read
        and next(part.parameters(), None) is not None
    ]


def text_seams(model: nn.Module) -> list[str]:
    """Return the calls that turn a text into features, where there are any."""
    names = ('language_model', 'text_feat_map')
    return [f'{path}.forward' for name in names for path in stages(model, name)]


def stages(model: nn.Module, name: str) -> list[str]:
    """Return the paths of a head, or of each head in a list of heads."""
    head = getattr(model, name, None)
    if isinstance(head, nn.ModuleList):
        return [f'{name}.{i}' for i in range(len(head))]
    return [name] if isinstance(head, nn.Module) else []


def output_names(head: Any) -> list[str]:
    """Return the names of what a head's ``forward`` returns.

    Its ``loss_by_feat`` takes it in the same order.
    """
    method = getattr(head, 'loss_by_feat', None)
    return list(inspect.signature(method).parameters) if callable(method) else []


def labelled(data_samples: Sequence[Any], size: Sequence[int], ignore: int) -> Tensor:
    """Say which pixels have a label, at a head's resolution: (N, H, W)."""
    maps = [sample.gt_sem_seg for sample in data_samples]
    labels = torch.stack([each.get('sem_seg', each.get('data')) for each in maps])
    nearest = F.interpolate(
        (labels != ignore).float(), size=tuple(size), mode='nearest'
    )
    return nearest[:, 0]


def read_outputs(path: str, name: str, replayed: Replayed) -> list[Pair]:
    """Read the (N, C) and (N, C, H, W) tensors that a seam returned.

    Sequences (N, L, C), as transformers have them, are read as (N * L, C).
    """
    pairs: list[Pair] = []
    for ours, theirs in replayed.of(path):
        both = zip(tensors_in(ours.output), tensors_in(theirs.output))
        for student, teacher in both:
            if student.dim() == 3:
                student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
            if student.dim() in (2, 4) and student.is_floating_point():
                pairs.append(Pair(f'{name}[{len(pairs)}]', student, teacher))
    return pairs
