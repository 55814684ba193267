"""The documentation runs, names the defaults of the code, and links to what exists."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.utils import get_installed_path
from torch import nn

import mmselfdistill
import mmselfdistill.losses
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.terms import default_terms, resolve_terms
from mmselfdistill.families import FAMILIES, AnyModel, Nested, Plan, find_plan
from mmselfdistill.hooks.base import DistillHook
from mmselfdistill.schedules import Schedule, build_schedule

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('configs/**/*.md')]
)
SETTINGS = (ROOT / 'docs/settings.md').read_text()
HOW = (ROOT / 'docs/how_it_works.md').read_text()
# a model of each family, with all the sites that the family may have
FAMILY_MODELS = {
    'two-stage detector': 'mask-rcnn_r18_fpn_50e_digits',
    'single-stage detector': 'gfl_r18_fpn_50e_digits',
    'segmentor': 'deeplabv3plus_r18-d8_1xb8-1500_digits-64x64',
    'query detector': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'mask classifier': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'grid of masks': 'mmdet::solo/solo_r50_fpn_1x_coco.py',
}

each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: str(p.relative_to(ROOT))
)


def blocks(text: str, language: str = 'python') -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    pattern = rf'^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)'
    match = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert match, heading
    found: list[list[str]] = []
    for line in match[1].splitlines():
        if line.startswith('|'):
            found.append([cell.strip() for cell in line.strip('|').split('|')])
        elif found:
            break
    return found[2:]


def code(cell: str) -> str:
    return cell.strip('`')


def value(cell: str) -> Any:
    """Return the value that a cell shows as code."""
    assert cell.startswith('`') and cell.endswith('`'), cell
    return eval(code(cell), {'dict': dict})


def headings(text: str, level: int, below: str = '') -> list[str]:
    """Return the headings that are one name in code."""
    part = text.split(f'\n## {below}\n')[1].split('\n## ')[0] if below else text
    return re.findall(rf'^{"#" * level} `(\w+)`$', part, re.MULTILINE)


def model_of(name: str) -> Any:
    if '::' in name:
        init_default_scope('mmdet')
        package = get_installed_path('mmdet')
        path = Path(package, '.mim', 'configs', name.partition('::')[2])
    else:
        path = ROOT / f'configs/digits/{name}.py'
    return MODELS.build(Config.fromfile(path).model)


@pytest.fixture(scope='module')
def gfl() -> tuple[Any, Plan]:
    model = model_of('gfl_r18_fpn_50e_digits')
    return model, find_plan(model)


def test_every_hook_and_loss_has_its_settings() -> None:
    hooks = [name for name in mmselfdistill.__all__ if name.endswith('Hook')]
    losses = [name for name in mmselfdistill.losses.__all__ if name.endswith('Loss')]
    listed = headings(SETTINGS, 3, 'Hooks') + headings(SETTINGS, 3, 'Seeing a run')
    assert sorted(listed) == sorted(hooks)
    assert sorted(headings(SETTINGS, 3, 'Losses')) == sorted(losses)


@pytest.mark.parametrize('name', [*headings(SETTINGS, 3), 'Settings of all hooks'])
def test_defaults_are_those_of_the_code(name: str) -> None:
    shared = name == 'Settings of all hooks'
    cls = DistillHook if shared else HOOKS.get(name) or MODELS.get(name)
    inherited = cls.__init__ is nn.Module.__init__
    signature = [] if inherited else inspect.signature(cls).parameters.values()
    parameters = [p for p in signature if p.kind is not p.VAR_KEYWORD]
    table = {
        code(key): default
        for key, default, _ in rows(SETTINGS, name if shared else f'`{name}`')
    }
    assert table.keys() == {parameter.name for parameter in parameters}
    for parameter in parameters:
        default = table[parameter.name]
        if default == 'required':
            with pytest.raises((TypeError, ValueError), match=parameter.name):
                cls()
        else:
            assert value(default) == parameter.default
            assert type(value(default)) is type(parameter.default)


def test_the_hooks_own_schedules() -> None:
    table = rows(SETTINGS, "The hooks' own schedules")
    assert {code(hook) for hook, _ in table} == set(headings(SETTINGS, 3, 'Hooks'))
    for hook, schedule in table:
        own = HOOKS.get(code(hook)).default_schedule
        assert build_schedule(value(schedule), '') == build_schedule(own, '')


def test_a_terms_own_keys(gfl: tuple[Any, Plan]) -> None:
    table = {code(key): default for key, default, _ in rows(SETTINGS, 'Terms')}
    assert list(table) == ['type', 'site', 'weight', 'schedule', 'on']
    configs: Any = dict(_delete_=True, boxes=dict(type='PKDLoss'))
    (term,) = resolve_terms(*gfl, configs, 'linear')
    assert (term.site.name, term.weight) == ('boxes', value(table['weight']))
    assert term.schedule == build_schedule('linear', '')
    with pytest.raises(
        ValueError, match=r'^terms\.mine: .* needs the type of its loss'
    ):
        resolve_terms(*gfl, dict(mine=dict(site='boxes')), None)


def documented_terms() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the table of default terms: family to term to its config."""
    families: dict[str, dict[str, dict[str, Any]]] = {}
    for family, name, loss, weight, others in rows(SETTINGS, 'Default terms'):
        # a row without a family goes on with the one above
        terms = families.setdefault(family or list(families)[-1], {})
        rest = value(f'`dict({code(others)})`')
        terms[code(name)] = dict(type=code(loss), weight=value(weight), **rest)
    return families


@pytest.mark.parametrize('name', FAMILY_MODELS)
def test_default_terms_and_sites_of_a_family(name: str) -> None:
    plan = find_plan(model_of(FAMILY_MODELS[name]))
    assert plan.name == name
    # what the model does not predict is missing
    assert default_terms(plan).items() <= documented_terms()[name].items()
    (cells,) = (
        r for r in rows(HOW, 'Families, seams and sites') if r[0].startswith(name)
    )
    assert set(re.findall(r'`(\w+)`', cells[3])) >= {s.name for s in plan.sites}
    listed = set(re.findall(r'`(\w+)`', cells[2]))
    for seam in plan.seams:
        parts = set(seam.path.split('.'))
        assert listed & parts or not seam.repeat or 'each head' in cells[2], seam


def test_every_family_is_documented() -> None:
    # a nested detector has the inner model's terms
    own = {family.name for family in FAMILIES if family is not Nested}
    assert own == documented_terms().keys()


def test_any_other_model_is_distilled_by_its_features() -> None:
    plan = AnyModel.plan(nn.ModuleDict(dict(backbone=nn.Conv2d(3, 3, 1))))
    assert default_terms(plan) == documented_terms()[plan.name]


def test_schedule_keys_and_types() -> None:
    table = {
        code(key): value(default)
        for key, default, _ in rows(SETTINGS, 'Weight over time: `schedule`')
    }
    plain = Schedule()
    assert table == {key: getattr(plain, key) for key in plain.__dataclass_fields__}
    types = SETTINGS.split('| type | factor |')[1].split('\n\n')[0].splitlines()[2:]
    for line in types:
        kind, _, keys = (cell.strip() for cell in line.strip('|').split('|'))
        listed = {'begin', 'end', 'warmup', *re.findall(r'`(\w+)`', keys)}
        needed = dict(milestones=[0.5]) if 'milestones' in listed else {}
        for key in table.keys() - {'type', 'milestones', 'over'}:
            cfg = dict(type=value(kind), **{**needed, key: 0.25})
            if key in listed:
                assert getattr(build_schedule(cfg, ''), key) == 0.25
            else:
                with pytest.raises(ValueError, match='does not use'):
                    build_schedule(cfg, '')


def messages() -> list[tuple[str, str]]:
    pattern = r'```python\n((?:terms|schedule) = [^`]*)```\n```text\n(.*?)```'
    found = re.findall(pattern, SETTINGS, re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize(('setting', 'message'), messages())
def test_wrong_settings_are_answered_as_shown(
    setting: str, message: str, gfl: tuple[Any, Plan]
) -> None:
    with pytest.raises(ValueError) as error:
        hook = mmselfdistill.EMATeacherHook(**value(f'`dict({setting})`'))
        resolve_terms(*gfl, hook.terms, hook.schedule)
    shown, shortened, _ = ' '.join(message.split()).partition(' …')
    assert (
        str(error.value).startswith(shown) if shortened else str(error.value) == shown
    )


def test_delete_in_a_derived_config_reaches_only_the_base(
    tmp_path: Path, gfl: tuple[Any, Plan]
) -> None:
    hook = (
        "dict(type='mmselfdistill.EMATeacherHook', terms=dict(logits=dict(weight=3)))"
    )
    (tmp_path / 'base.py').write_text(f'default_hooks = dict(self_distill={hook})')
    terms = "dict(_delete_=True, boxes=dict(type='BoxDistillLoss'))"
    (tmp_path / 'derived.py').write_text(
        f"_base_ = 'base.py'\ndefault_hooks = dict(self_distill=dict(terms={terms}))"
    )
    derived = Config.fromfile(tmp_path / 'derived.py').default_hooks.self_distill.terms
    resolved = resolve_terms(*gfl, derived, None)
    assert {term.name: term.weight for term in resolved} == dict(
        features=0.5, logits=1.0, boxes=0.25
    )


def test_what_a_checkpoint_holds(gfl: tuple[Any, Plan]) -> None:
    table = rows(HOW, 'Checkpoints')
    only = [key for key, meaning in table if 'Hook` only' in meaning]
    listed = {
        code(name) for key, _ in table if key not in only for name in key.split(', ')
    }
    fixed = mmselfdistill.SelfDistillHook(teacher='a.pth')
    for hook, more in (
        (mmselfdistill.EMATeacherHook(), set[str]()),
        (fixed, {'source'}),
    ):
        hook.distiller = Distiller(*gfl, resolve_terms(*gfl, None, None))
        checkpoint: dict[str, Any] = {}
        unused: Any = None
        hook.before_save_checkpoint(unused, checkpoint)
        assert checkpoint['mmselfdistill'].keys() == listed | more
    ours = mmselfdistill.GenerationHook(generations=2).identity().keys()
    generation = {code(name) for key in only for name in key.split(', ')}
    assert generation - {'beginning', 'source'} == ours - listed


def outside_code(text: str) -> str:
    return re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    found = re.findall(r'^#+ (.*)$', outside_code(page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', each.lower()).replace(' ', '-') for each in found}


@each_page
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r'\]\(([^)\s]+)\)', outside_code(page.read_text())):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@each_page
def test_named_files_exist(page: Path) -> None:
    pattern = r'`((?:docs|tests|tools|mmselfdistill|configs|\.ci)/[\w./-]*)`'
    for path in re.findall(pattern, page.read_text()):
        # a wheel's, not a checkout's
        assert '/.mim' in path or (ROOT / path).exists(), path


@each_page
def test_python_of_the_pages_loads(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text()):
        ast.parse(block)
        # other files of a page, and a packed wheel's own names, are not there
        config = re.search(r"_base_ = '(?!mmselfdistill)\w+::", block)
        if config and 'self_distill' in block and 'custom_imports' not in block:
            (tmp_path / 'config.py').write_text(block)
            hook = Config.fromfile(tmp_path / 'config.py').default_hooks.self_distill
            assert isinstance(HOOKS.build(hook), mmselfdistill.hooks.base.DistillHook)


def test_flags_of_launching_are_those_of_the_tools() -> None:
    folders = (ROOT / 'tools', ROOT / 'mmselfdistill/commands')
    tools = ''.join(
        path.read_text()
        for each in folders
        for path in each.iterdir()
        if path.is_file()
    )
    page = (ROOT / 'docs/launching.md').read_text()
    flags = set(re.findall(r'--[a-z][a-z-]+', page))
    assert {'--self-distill', '--work-dir', '--cost'} <= flags
    for flag in flags:
        assert flag in tools, flag
