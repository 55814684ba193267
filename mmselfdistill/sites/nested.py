"""Models that train another one inside."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from mmselfdistill.replay import Call

from .family import Family, Pair, Reader, Replayed


class Nested(Family):
    """A model that is trained through a detector that it holds.

    The student of semi-supervised training, whose own teacher makes labels, and
    the detector of a tracker. Everything is that detector's, under its path.
    """

    name = 'nested detector'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        from . import find_family

        self.path = str(_inner(model))
        self.inner = find_family(model.get_submodule(self.path))
        self.name = f'{self.inner.name} in {self.path}'

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a model holds the one that it trains."""
        return _inner(model) is not None

    def seams(self) -> list[str]:
        """Return the inner model's seams, under its path."""
        return [self._under(path) for path in self.inner.seams()]

    def observed(self) -> list[str]:
        """Return the inner model's observed calls."""
        return [self._under(path) for path in self.inner.observed()]

    def state(self) -> dict[str, str]:
        """Return the inner model's state."""
        return {self._under(path): name for path, name in self.inner.state().items()}

    def shared(self) -> list[str]:
        """Return the inner model's shared modules."""
        return [self._under(path) for path in self.inner.shared()]

    def kept(self) -> dict[str, tuple[str, ...]]:
        """Return the inner model's choices."""
        return {self._under(path): names for path, names in self.inner.kept().items()}

    def readers(self) -> dict[str, Reader]:
        """Return the inner model's sites."""
        return {
            site: partial(self._read, reader)
            for site, reader in self.inner.readers().items()
        }

    def default_terms(self) -> dict[str, dict[str, Any]]:
        """Return the inner model's terms."""
        return self.inner.default_terms()

    def skipped(self) -> dict[str, str]:
        """Return what the inner model skips, and the heads around it."""
        around = [
            name
            for name, part in self.model.named_children()
            if name.endswith('head') and any(True for _ in part.parameters())
        ]
        why = 'embeddings: only their differences within a batch mean something'
        return {**self.inner.skipped(), **dict.fromkeys(around, why)}

    def _under(self, path: str) -> str:
        return f'{self.path}.{path}'

    def _read(self, reader: Reader, replayed: Replayed) -> list[Pair]:
        calls = [
            (self._inside(ours), self._inside(theirs))
            for ours, theirs in replayed.calls
            if ours.path.startswith(f'{self.path}.')
        ]
        teacher = replayed.teacher
        if teacher is not None:
            teacher = teacher.get_submodule(self.path)
        return reader(Replayed(calls, replayed.data_samples, teacher))

    def _inside(self, call: Call) -> Call:
        return replace(call, path=call.path[len(self.path) + 1 :])


def _inner(model: nn.Module) -> str | None:
    for name in ('student', 'detector'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module) and hasattr(part, 'extract_feat'):
            return name
    return None
