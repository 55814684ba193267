"""What a checkpoint remembers of the settings, and what has changed since."""

from __future__ import annotations

import io
from typing import Any

import torch
from helpers import only
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.core.terms import differences, resolve_terms
from mmselfdistill.families import Plan
from mmselfdistill.losses import BoxDistillLoss


def test_the_fingerprint_is_plain_and_loads_from_a_checkpoint(
    gfl: Any, plan: Plan
) -> None:
    configs = ConfigDict(
        boxes=dict(weight=1, schedule=dict(type='step', milestones=(0.5, 0.75))),
        deep=dict(type='PKDLoss', site='backbone.layer3'),
    )
    terms = resolve_terms(gfl, plan, configs, 'cosine')
    saved = {term.name: term.config for term in terms}
    step = dict(type='step', milestones=[0.5, 0.75])
    assert saved['boxes'] == dict(
        type='BoxDistillLoss', site='boxes', weight=1.0, schedule=step, on='both'
    )
    assert saved['deep'] == dict(
        type='PKDLoss',
        site='backbone.layer3',
        weight=1.0,
        schedule='cosine',
        on='both',
    )
    assert saved['logits'] == dict(
        type='SoftTargetLoss',
        site='logits',
        weight=1.0,
        beta=1.0,
        schedule='cosine',
        on='both',
    )
    assert isinstance(only(terms, 'boxes').loss, BoxDistillLoss)
    assert type(saved['boxes']['schedule']) is dict

    # strict loading knows no ConfigDict
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == saved


def test_the_fingerprint_holds_what_is_no_plain_value_as_text(
    gfl: Any, plan: Plan
) -> None:
    @MODELS.register_module()
    class WithDevice(nn.Module):
        def __init__(self, device: torch.device) -> None:
            super().__init__()

        def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
            return student.sum()

    try:
        cfg = dict(type='WithDevice', site='features', device=torch.device('cpu'))
        term = only(resolve_terms(gfl, plan, dict(mine=cfg), None), 'mine')
    finally:
        MODELS.module_dict.pop('WithDevice')
    assert term.config['device'] == "device(type='cpu')"


def test_equal_settings_differ_in_nothing(gfl: Any, plan: Plan) -> None:
    """However they are written: 1 and 1.0, tuples and lists, given or by default."""

    def fingerprint(configs: dict[str, Any]) -> dict[str, Any]:
        return {t.name: t.config for t in resolve_terms(gfl, plan, configs, 'cosine')}

    plain = fingerprint({})
    same = dict(
        logits=dict(weight=1, site='logits', schedule='cosine'),
        boxes=dict(type='BoxDistillLoss'),
    )
    assert differences(fingerprint(same), plain) == []


def test_differences_are_said_both_ways() -> None:
    saved = dict(
        boxes=dict(type='BoxDistillLoss', weight=0.25),
        logits=dict(type='SoftTargetLoss', weight=1.0, beta=1.0),
    )
    given = dict(
        logits=dict(type='SoftTargetLoss', weight=2.0, temperature=4.0, beta=1.0),
        masks=dict(type='MaskDistillLoss'),
    )
    assert differences(given, saved) == [
        "terms.boxes.type: 'BoxDistillLoss' in the checkpoint, None now",
        'terms.boxes.weight: 0.25 in the checkpoint, None now',
        'terms.logits.temperature: None in the checkpoint, 4.0 now',
        'terms.logits.weight: 1.0 in the checkpoint, 2.0 now',
        "terms.masks.type: None in the checkpoint, 'MaskDistillLoss' now",
    ]
