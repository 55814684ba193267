"""One name, however a config gives the class."""

from __future__ import annotations

from typing import Any

import pytest

from mmselfdistill.hooks import EMATeacherHook
from mmselfdistill.names import name_of


@pytest.mark.parametrize(
    'kind',
    [
        EMATeacherHook,
        'EMATeacherHook',
        'mmselfdistill.EMATeacherHook',
        'mmselfdistill.hooks.ema_teacher_hook.EMATeacherHook',
    ],
)
def test_a_class_and_its_names_are_one(kind: Any) -> None:
    assert name_of(kind) == 'EMATeacherHook'
