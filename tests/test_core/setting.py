"""A distiller at work on a small real model."""

from __future__ import annotations

import copy
from typing import Any, Dict, Tuple

from helpers import disturb

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.teacher import make_teacher

Small = Tuple[Any, Dict[str, Any]]


class Setting:
    """A distiller at work on the small model, its teacher apart from it."""

    def __init__(self, built: Small, terms: Any = None, **arguments: Any) -> None:
        self.model, self.data = built
        self.distiller = build_distiller(self.model, terms, **arguments)
        self.teacher = make_teacher(self.model)
        disturb(self.teacher)
        self.distiller.teacher = self.teacher
        self.teacher_runs = 0
        self.teacher.get_submodule('backbone').register_forward_hook(self._count)
        # whether each of the student's runs was recorded
        self.recorded: list[bool] = []

    def _count(self, *_: Any) -> None:
        self.teacher_runs += 1

    def _note(self, *_: Any) -> None:
        self.recorded.append('extract_feat' in vars(self.model))

    def __enter__(self) -> Setting:
        self.distiller.attach()
        self.noting = self.model.backbone.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.distiller.detach()
        self.noting.remove()

    def losses(self, **changes: Any) -> dict[str, Any]:
        data = {**copy.deepcopy(self.data), **changes}
        result: dict[str, Any] = self.model(**data, mode='loss')
        return result
