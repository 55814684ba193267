"""Configs by name, their framework, and our hook in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import mmselfdistill
from mmselfdistill.zoo import check_scope, find_self_distill, pop_self_distill

NEW_STYLE = """
from mmdet.models import RetinaNet
from mmengine.hooks import CheckpointHook

default_scope = None
model = dict(type=RetinaNet)
default_hooks = dict(checkpoint=dict(type=CheckpointHook))
"""


def test_a_new_config_without_a_scope_is_of_its_models_package(tmp_path: Path) -> None:
    (tmp_path / 'new.py').write_text(NEW_STYLE)
    cfg = Config.fromfile(tmp_path / 'new.py', lazy_import=True)
    assert cfg.default_scope is None
    assert check_scope(cfg) == 'mmdet'
    assert find_self_distill(cfg) is None


@pytest.mark.parametrize(
    ('model', 'scope', 'found'),
    [
        (dict(type='mmseg.EncoderDecoder'), None, 'mmseg'),
        (dict(type='mmseg.EncoderDecoder'), 'mmdet', 'mmdet'),
        (dict(type='RetinaNet'), None, None),
        (None, None, None),
    ],
)
def test_the_scope_of_a_config(model: Any, scope: Any, found: str | None) -> None:
    cfg = Config(dict(model=model, default_scope=scope))
    if found is not None:
        assert check_scope(cfg) == found
        return
    with pytest.raises(ValueError, match=r'^default_scope: expected one of '):
        check_scope(cfg)


class OwnEMA(mmselfdistill.EMATeacherHook):
    """A hook of one's own."""


@pytest.mark.parametrize('kind', ['OwnEMA', OwnEMA, 'EMATeacherHook'])
def test_a_subclass_of_a_hook_is_ours(kind: Any) -> None:
    HOOKS.register_module(module=OwnEMA, force=True)
    try:
        others: list[Any] = [dict(type='NoSuchHook'), dict(type=Hook)]
        cfg = Config(dict(custom_hooks=[*others, dict(type=kind, every=2)]))
        found = find_self_distill(cfg)
        assert found is not None and found['every'] == 2
        pop_self_distill(cfg)
        assert [hook['type'] for hook in cfg.custom_hooks] == ['NoSuchHook', Hook]
    finally:
        HOOKS.module_dict.pop('OwnEMA')
