"""Silence for what builds models to look at them."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Iterator

from mmengine.logging import MMLogger


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what models print, log and warn of while they are built off the screen."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        MMLogger.get_instance('mmselfdistill', log_level='ERROR')
        yield
