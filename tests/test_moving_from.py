"""docs/moving_from.md: our configs build, and theirs are theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.utils import get_installed_path
from test_docs import blocks

from mmselfdistill.core.terms import resolve_terms
from mmselfdistill.families import find_plan

PAGE = (Path(__file__).parents[1] / 'docs/moving_from.md').read_text()
OURS = [block for block in blocks(PAGE) if block.startswith('_base_')]
THEIRS = dict(re.findall(r'```python\n# theirs: (\S+)\n(.*?)```', PAGE, re.DOTALL))


def in_part(shown: Any, real: Any, where: str = '') -> list[str]:
    """Return what is shown and is not there."""
    if not isinstance(shown, dict):
        return [] if shown == real else [f'{where}: {shown!r}, but {real!r}']
    return [
        each
        for key, value in shown.items()
        for each in in_part(value, real.get(key), f'{where}.{key}')
    ]


@pytest.mark.parametrize('block', OURS, ids=range(len(OURS)))
def test_ours_build_and_have_the_terms_that_they_name(
    block: str, tmp_path: Path
) -> None:
    (tmp_path / 'config.py').write_text(block)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope('mmdet')
    hook = HOOKS.build(cfg.default_hooks.self_distill)
    model = MODELS.build(cfg.model)
    found = resolve_terms(
        model, find_plan(model), hook.terms, None, unlabeled=hook.unlabeled is not None
    )
    terms = {term.name: term for term in found}
    if hook.terms is None:
        # nothing is named: classes and boxes of both stages
        assert {'logits', 'boxes', 'proposals', 'proposal_boxes'} < terms.keys()
    else:
        named = {name for name in hook.terms if name != '_delete_'}
        assert terms.keys() == named
        for name in named:
            assert terms[name].weight == hook.terms[name]['weight']


@pytest.mark.parametrize('name', THEIRS)
def test_theirs_are_those_of_mmdetection(name: str) -> None:
    shown: dict[str, Any] = {}
    exec(THEIRS[name], {}, shown)
    folder = get_installed_path(MODULE2PACKAGE['mmdet'])
    real = Config.fromfile(Path(folder, '.mim', 'configs', name))
    assert in_part(shown, real.to_dict()) == []


def test_a_changed_key_is_noticed() -> None:
    assert in_part({'a': {'b': 1}}, {'a': {'b': 2, 'c': 3}}) == ['.a.b: 1, but 2']


def test_theirs_are_all_of_the_page() -> None:
    assert len(OURS) == len(THEIRS) + 1 == 3
