"""A teacher file is accepted exactly when the model's own strict loading accepts it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmselfdistill.hooks.self_distill_hook import load_strictly


def model() -> nn.Module:
    block = ConvModule(3, 4, 3, norm_cfg=dict(type='BN'))
    nn.init.normal_(block.norm.running_mean)
    return nn.Sequential(OrderedDict(block=block))


def written(path: Path, state: Any, versions: Any = None) -> str:
    state = OrderedDict(state)
    if versions is not None:
        state._metadata = versions
    torch.save(dict(state_dict=state), path)
    return str(path)


@pytest.fixture
def trained() -> tuple[dict[str, Any], Any]:
    state = model().state_dict()
    return dict(state), state._metadata  # type: ignore[attr-defined]


def test_a_norm_from_before_it_counted_its_batches(
    tmp_path: Path, trained: tuple[dict[str, Any], Any]
) -> None:
    state, versions = trained
    old = {k: v for k, v in state.items() if 'num_batches_tracked' not in k}
    teacher = model()
    assert load_strictly(teacher, written(tmp_path / 'old.pth', old), '') == ('', [])
    mean = teacher.get_buffer('block.bn.running_mean')
    assert torch.equal(mean, state['block.bn.running_mean'])
    # a file of today that lacks the count is broken
    broken = written(tmp_path / 'broken.pth', old, versions)
    with pytest.raises(ValueError, match=r'missing: block\.bn\.num_batches_tracked'):
        load_strictly(model(), broken, '')


def test_the_versions_in_a_file_of_ddp_are_kept(
    tmp_path: Path, trained: tuple[dict[str, Any], Any]
) -> None:
    state, versions = trained
    path = written(
        tmp_path / 'ddp.pth',
        {f'module.{key}': v for key, v in state.items() if 'tracked' not in key},
        OrderedDict((f'module.{k}'.rstrip('.'), v) for k, v in versions.items()),
    )
    with pytest.raises(ValueError, match='num_batches_tracked'):
        load_strictly(model(), path, '')


def test_a_module_translates_its_own_old_names(tmp_path: Path) -> None:
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
            if f'{prefix}kernel' in state:
                state[f'{prefix}weight'] = state.pop(f'{prefix}kernel')
            super()._load_from_state_dict(state, prefix, *args)

    teacher = nn.Sequential(Renamed(2, 2))
    old = {'0.kernel': torch.ones(2, 2), '0.bias': torch.ones(2)}
    assert load_strictly(teacher, written(tmp_path / 'old.pth', old), '') == ('', [])
    assert torch.equal(teacher[0].weight, torch.ones(2, 2))


def test_a_plain_detectors_file_fits_the_model_that_holds_it(
    tmp_path: Path, trained: tuple[dict[str, Any], Any]
) -> None:
    state, versions = trained
    path = written(tmp_path / 'plain.pth', state, versions)
    teacher = nn.ModuleDict(dict(student=model(), teacher=model()))
    before = {k: v.clone() for k, v in teacher['teacher'].state_dict().items()}
    assert load_strictly(teacher, path, 'student') == ('student', [])
    for key, value in state.items():
        assert torch.equal(teacher['student'].state_dict()[key], value)
        assert torch.equal(teacher['teacher'].state_dict()[key], before[key])
    with pytest.raises(ValueError, match=r'(?s)missing: student\..*unexpected: block'):
        load_strictly(teacher, path, '')


def test_a_part_that_is_called_module_is_no_wrapper(tmp_path: Path) -> None:
    def built() -> nn.Module:
        return nn.ModuleDict(dict(module=nn.Linear(2, 2), head=nn.Linear(2, 2)))

    path, teacher = written(tmp_path / 'part.pth', built().state_dict()), built()
    assert load_strictly(teacher, path, '') == ('', [])
    saved = torch.load(path)['state_dict']
    assert torch.equal(teacher.get_parameter('module.weight'), saved['module.weight'])
