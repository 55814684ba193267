"""What a family says of a model: a plan, as data, and how one side of it is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmselfdistill.containers import Leaf, leaves, snapshot


@dataclass(frozen=True)
class Seam:
    """A call inside of a model that is recorded, and that the teacher repeats.

    Args:
        path (str): Dotted path of a method, or of a module's ``forward``.
        repeat (bool): Whether the teacher makes it. Without, only its arguments are
            read. Defaults to True.
        keep (tuple[str, ...]): Names of arguments that the student chooses for both
            sides: its RoIs, its queries. What a recorded call returned is the
            teacher's version all the same. Within another repeated call, the
            student's replace what the teacher chose. Defaults to ().
    """

    path: str
    repeat: bool = True
    keep: tuple[str, ...] = ()


@dataclass
class Call:
    """One call of a seam.

    Args:
        path (str): The seam's path.
        depth (int): The number of recorded calls it was made within.
        args (tuple): Positional arguments. Containers are copied as they were at the
            call, tensors and other objects are the very same.
        kwargs (dict): Keyword arguments, likewise.
        rng (list): The generators' states in which it began; empty within another call.
            Defaults to none.
        output (Any): What it returned, as the arguments. Defaults to None.
        given (list[Leaf]): The tensors and objects in arguments at its begin: an object
            may hold something else later. Empty within another call. Defaults to none.
        returned (list[Leaf]): Those in the output at its end. Defaults to none.
        trains (bool): Whether gradients were on at its begin. Defaults to True.
        precision (list): How autocast was set then. Defaults to none: as it is.
        attributes (list): What the model's modules held then besides weights. Defaults
            to none.
    """

    path: str
    depth: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: list[Any] = field(default_factory=list, repr=False)
    output: Any = None
    given: list[Leaf] = field(default_factory=list, repr=False)
    returned: list[Leaf] = field(default_factory=list, repr=False)
    trains: bool = True
    precision: list[Any] = field(default_factory=list, repr=False)
    attributes: list[Any] = field(default_factory=list, repr=False)

    def begin(self) -> None:
        """Note what the call is given."""
        self.given = leaves((self.args, self.kwargs))
        self.trains = torch.is_grad_enabled()

    def end(self, output: Any) -> None:
        """Note what the call returned."""
        # a RoI head adds keys to the dict that its seam returned
        self.output = snapshot(output)
        self.returned = leaves(output)


@dataclass
class Side:
    """One iteration of one model, student or teacher, as sites read it.

    Args:
        model (nn.Module): The model that made the calls.
        calls (list[Call]): Its calls, in order.
        samples (Sequence, optional): The batch's annotations, as the model got them, or
            None of images without labels.
        confidence (float, optional): Of images without labels: the probability above
            which a pixel of the teacher's is sure. Defaults to None: all count alike.
        metas (Sequence): What is known of each image without labels, such as its shape.
            Defaults to ().
        read (dict): What several sites read, by key: see :meth:`once`.
    """

    model: nn.Module
    calls: list[Call]
    samples: Sequence[Any] | None
    confidence: float | None = None
    metas: Sequence[Mapping[str, Any]] = ()
    read: dict[str, Any] = field(default_factory=dict, repr=False)

    def of(self, path: str) -> list[Call]:
        """Return the calls of one seam, in order."""
        return [call for call in self.calls if call.path == path]

    def once(self, key: str, read: Callable[[Side], Any]) -> Any:
        """Read something that several sites need once in an iteration."""
        if key not in self.read:
            self.read[key] = read(self)
        return self.read[key]

    def inside(self, path: str) -> Side:
        """Return the side of a model that this one holds, the same one each time."""
        start = f'{path}.'
        if start not in self.read:
            calls = [
                replace(call, path=call.path[len(start) :])
                for call in self.calls
                if call.path.startswith(start)
            ]
            inner = self.model.get_submodule(path)
            rest = self.samples, self.confidence, self.metas
            self.read[start] = Side(inner, calls, *rest)
        return self.read[start]


@dataclass(frozen=True)
class Reading:
    """One tensor of a site, as one side made it.

    Args:
        tensor (Tensor | Callable): (N, C), (N, C, H, W), boxes (N, 4) or (N, 4 * bins),
            or masks (P, H, W). Or a function that makes it of the rows that the
            teacher's side chose: `Rows.index`.
        kind (str): What its numbers are: 'softmax' (logits, background last), 'sigmoid'
            (logits), 'bins' (logits of distances), 'offsets', 'cxcywh', 'sides' (left,
            top, right, bottom), 'mask' (logits). Defaults to '': not known.
    """

    tensor: Tensor | Callable[[Any], Tensor]
    kind: str = ''

    def at(self, index: Any) -> Tensor:
        """Return the tensor, of the chosen rows where there is a choice."""
        return self.tensor if isinstance(self.tensor, Tensor) else self.tensor(index)


@dataclass(frozen=True)
class Rows:
    """Which rows of a reading count, and how much: the teacher and the labels say.

    Args:
        weight (Tensor, optional): (N), or (N, H, W) of maps. Defaults to None: 1.
        norm (Tensor, optional): What the weighted sum is divided by, at least 1.
            Defaults to None: the sum of the weights, or the number of rows.
        index (Any): The chosen rows. Defaults to None: no choice.
    """

    weight: Tensor | None = None
    norm: Tensor | None = None
    index: Any = None


@dataclass(frozen=True)
class Site:
    """A place where student and teacher are compared.

    Args:
        name (str): Its name in a config.
        seams (tuple[str, ...]): Paths of the calls that it reads.
        read (Callable): One side to its readings; their number is the same on both.
        weigh (Callable, optional): The teacher's side to the rows of each reading.
            Defaults to None: all count alike.
        default (Mapping, optional): Its default term, as a user would write it.
            Defaults to None: no term unless a user asks for one.
        unlabeled (Site, optional): What it is on images without labels. Defaults to
            None: the same.
        by_confidence (bool): Whether it uses :attr:`Side.confidence`. Defaults to
            False.
    """

    name: str
    seams: tuple[str, ...]
    read: Callable[[Side], list[Reading]]
    weigh: Callable[[Side], list[Rows]] | None = None
    default: Mapping[str, Any] | None = None
    unlabeled: Site | None = None
    by_confidence: bool = False

    def on(self, labeled: bool) -> Site:
        """Return the site on images with or without labels."""
        return self if labeled or self.unlabeled is None else self.unlabeled


@dataclass(frozen=True)
class Plan:
    """All that a family says of one model.

    Args:
        name (str): The family's name, for people.
        seams (tuple[Seam, ...]): The recorded calls.
        sites (tuple[Site, ...]): Where the two sides are compared.
        shared (tuple[str, ...]): Paths of parameters, or of modules that hold some, of
            which the teacher uses the student's: learned queries, which have no order
            that two models would agree on. Defaults to ().
        skipped (Mapping[str, str]): What the model predicts that is not compared, and
            why. Defaults to none.
        inner (str): Path of the model inside that is trained. Defaults to '': itself.
        run (Callable, optional): Runs the model on images without labels: it is given
            the model, the images and data samples, and what it returns is not used.
            Defaults to None: ``forward`` in the mode 'tensor' does.
        teacher_norm (str): What the teacher's batch norms normalise by, unless the user
            says it: 'running' statistics, or those of the 'batch'. Defaults to
            'running'.
    """

    name: str
    seams: tuple[Seam, ...] = ()
    sites: tuple[Site, ...] = ()
    shared: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    inner: str = ''
    run: Callable[[Any, Any, Any], Any] | None = None
    teacher_norm: str = 'running'

    def site(self, name: str) -> Site | None:
        """Return the site of a name, if there is one."""
        return next((site for site in self.sites if site.name == name), None)

    def with_seams(self, *seams: Seam) -> Plan:
        """Return the plan with further seams, each path once."""
        known = {seam.path for seam in self.seams}
        new = {seam.path: seam for seam in seams if seam.path not in known}
        return replace(self, seams=(*self.seams, *new.values()))

    def under(self, path: str) -> Plan:
        """Return the plan of a model that holds this one's at a path."""

        def lifted(site: Site) -> Site:
            weigh = site.weigh
            return replace(
                site,
                seams=tuple(f'{path}.{seam}' for seam in site.seams),
                read=lambda side: site.read(side.inside(path)),
                weigh=weigh and (lambda side: weigh(side.inside(path))),
                unlabeled=site.unlabeled and lifted(site.unlabeled),
            )

        return replace(
            self,
            name=f'{self.name} in {path}',
            seams=tuple(replace(s, path=f'{path}.{s.path}') for s in self.seams),
            sites=tuple(map(lifted, self.sites)),
            shared=tuple(f'{path}.{each}' for each in self.shared),
            inner=path,
        )


class Family:
    """Models that are recorded and read in the same way.

    A subclass recognises its models by their parts, and imports no framework for it.
    """

    name = ''

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Say whether a model is of this family."""
        raise NotImplementedError

    @classmethod
    def plan(cls, model: nn.Module) -> Plan:
        """Say how a model of this family is recorded, repeated and read."""
        raise NotImplementedError


def parameters_of(method: Any) -> list[str]:
    """Return the names of a method's parameters, or none where there is no method."""
    return list(inspect.signature(method).parameters) if callable(method) else []


def argument(method: Any, name: str) -> Callable[[Call], Any]:
    """Return what takes an argument of a method out of a recorded call of it."""
    position = parameters_of(method).index(name)

    def take(call: Call) -> Any:
        return call.kwargs[name] if name in call.kwargs else call.args[position]

    return take
