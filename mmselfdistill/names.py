"""Names of classes in a config."""

from __future__ import annotations

from typing import Any


def name_of(kind: Any) -> str:
    """Return the name of a ``type`` in a config, without its module or scope.

    Args:
        kind (str | type): ``'mmdet.FasterRCNN'`` and the class itself are both
            ``'FasterRCNN'``.
    """
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
