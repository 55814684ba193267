"""From what a user writes to terms, and what a wrong setting is answered with."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

import pytest
import torch.nn.functional as F
from helpers import only
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmselfdistill.core.terms import default_terms, merge_terms, resolve_terms
from mmselfdistill.families import FAMILIES, Plan, find_plan
from mmselfdistill.losses import PKDLoss, SoftTargetLoss

LOSSES = (
    "'BoxDistillLoss', 'FeatureMSELoss', 'InfoNCELoss', 'MaskDistillLoss', "
    "'PKDLoss', 'PseudoLabelLoss', 'SoftTargetLoss'"
)


DEFAULTS: dict[str, dict[str, Any]] = dict(
    features=dict(type='PKDLoss', weight=0.5),
    logits=dict(
        type='SoftTargetLoss', weight=1.0, beta=1.0, site='logits', on='labeled'
    ),
)


class Plain(nn.Module):
    """A model that no family covers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.classifier = nn.Linear(2, 2)


MERGES: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
    'nothing': ({}, DEFAULTS),
    'one key of one term': (
        dict(logits=dict(weight=3)),
        dict(DEFAULTS, logits=dict(DEFAULTS['logits'], weight=3)),
    ),
    'the same type is no change': (
        dict(logits=dict(type='SoftTargetLoss', temperature=2.0)),
        dict(DEFAULTS, logits=dict(DEFAULTS['logits'], temperature=2.0)),
    ),
    'another type keeps only where it is computed': (
        dict(logits=dict(type='FeatureMSELoss')),
        dict(DEFAULTS, logits=dict(type='FeatureMSELoss', site='logits', on='labeled')),
    ),
    'another type where no site was given': (
        dict(features=dict(type='InfoNCELoss', temperature=0.2)),
        dict(DEFAULTS, features=dict(type='InfoNCELoss', temperature=0.2)),
    ),
    'none removes': (
        dict(features=None),
        dict(logits=DEFAULTS['logits']),
    ),
    'delete of one term': (
        dict(logits=dict(_delete_=True, type='SoftTargetLoss')),
        dict(DEFAULTS, logits=dict(type='SoftTargetLoss')),
    ),
    'delete of all': (
        dict(_delete_=True, boxes=dict(type='BoxDistillLoss')),
        dict(boxes=dict(type='BoxDistillLoss')),
    ),
    'delete that is off': (dict(_delete_=False), DEFAULTS),
    'delete of all, and one removed besides': (
        dict(_delete_=True, features=None),
        {},
    ),
    'a new term': (
        dict(deep=dict(type='PKDLoss', site='backbone.layer3')),
        dict(DEFAULTS, deep=dict(type='PKDLoss', site='backbone.layer3')),
    ),
}


@pytest.mark.parametrize('case', MERGES)
def test_merge(case: str) -> None:
    configs, expected = MERGES[case]
    # as a config file hands it over
    given = ConfigDict(configs)
    defaults, before = copy.deepcopy(DEFAULTS), copy.deepcopy(given)
    assert merge_terms(defaults, given) == expected
    assert defaults == DEFAULTS
    assert given == before


def test_defaults_are_built_as_the_family_says(gfl: Any, plan: Plan) -> None:
    terms = resolve_terms(gfl, plan, None, None)
    expected = default_terms(plan)
    assert {term.name: term.weight for term in terms} == {
        name: cfg['weight'] for name, cfg in expected.items()
    }
    logits = only(terms, 'logits')
    assert isinstance(logits.loss, SoftTargetLoss)
    assert (logits.site.name, logits.loss.beta) == ('logits', 1.0)
    assert [logits.schedule(progress) for progress in (0.0, 0.5, 1.0)] == [1.0] * 3


def test_a_term_has_its_own_schedule_or_the_hooks(gfl: Any, plan: Plan) -> None:
    configs = dict(logits=dict(schedule=dict(type='linear', stop=0.5)))
    terms = resolve_terms(gfl, plan, configs, 'linear')
    assert only(terms, 'logits').schedule(1.0) == 0.5
    assert only(terms, 'features').schedule(1.0) == 0.01
    # None is a choice of its own, not the absence of one
    terms = resolve_terms(gfl, plan, dict(logits=dict(schedule=None)), 'linear')
    assert only(terms, 'logits').schedule(1.0) == 1.0


def test_two_terms_may_share_a_site(gfl: Any, plan: Plan) -> None:
    again = dict(type='PKDLoss', site='features', weight=2)
    terms = resolve_terms(gfl, plan, dict(again=again), None)
    term = only(terms, 'again')
    assert isinstance(term.loss, PKDLoss)
    assert (term.site.name, term.weight, type(term.weight)) == ('features', 2.0, float)
    assert only(terms, 'features').weight == 0.5


@pytest.mark.parametrize(
    'kind',
    [
        SoftTargetLoss,
        'mmselfdistill.losses.SoftTargetLoss',
        'mmselfdistill.losses.soft_target.SoftTargetLoss',
        'mmengine.SoftTargetLoss',
        'mmdet.SoftTargetLoss',
    ],
)
def test_a_class_and_its_path_are_its_name(kind: Any, gfl: Any, plan: Plan) -> None:
    by_class = dict(logits=dict(type=kind, weight=2.0))
    by_name = dict(logits=dict(type='SoftTargetLoss', weight=2.0))
    given, named = (resolve_terms(gfl, plan, cfg, None) for cfg in (by_class, by_name))
    assert [term.config for term in given] == [term.config for term in named]
    # the default's own arguments stay
    assert only(given, 'logits').config.keys() == only(named, 'logits').config.keys()
    assert only(given, 'logits').config['type'] == 'SoftTargetLoss'


def test_a_loss_of_the_users_own(gfl: Any, plan: Plan) -> None:
    @MODELS.register_module()
    class DoubledGap(nn.Module):
        def __init__(self, **arguments: Any) -> None:
            super().__init__()
            self.arguments = arguments

        def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
            return (student - teacher).abs().mean()

    try:
        cfg = dict(type='DoubledGap', site='features', anything=3, act=F.relu)
        term = only(resolve_terms(gfl, plan, dict(mine=cfg), None), 'mine')
    finally:
        MODELS.module_dict.pop('DoubledGap')
    assert isinstance(term.loss, DoubledGap)
    assert term.loss.arguments == dict(anything=3, act=F.relu)
    # a checkpoint is read in another process, where a function has another address
    assert term.config['anything'] == 3
    assert term.config['act'] == '<function relu>'


LOSSES_OF_ONES_OWN = """
import torch
from torch import nn
class Unborn(nn.Module):
    def __init__(self):
        pass
    def forward(self, student, teacher, **_):
        return (student - teacher).abs().mean()
class Early(Unborn):
    def __init__(self):
        self.layer = nn.Linear(1, 1)
def gap(student, teacher, **_):
    return 0
"""


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('mine.Unborn', r'\.type: the __init__ of mine\.Unborn calls no super\(\)'),
        ('mine.Early', ': .*cannot assign module before Module'),
        ('mine.gap', ".*; 'gap' of 'mine' is no torch.nn.Module$"),
        ('mine.Unbron', ".*; 'mine' has no such loss; did you mean 'Unborn'"),
        ('broken.Loss', ".*; 'broken' is not imported: NameError: name 'x' is not d"),
        ('needy.Loss', ".*; 'needy' is not imported: .* named 'not_there'$"),
        ('not_there.Loss', r".* named 'not_there'\. Is its folder in PYTHONPATH\?$"),
        ('mmdet.FocalLos', r".*; 'mmdet' has no such loss; valid: \['Box"),
    ],
)
def test_what_is_wrong_with_a_loss_of_ones_own_is_said(
    kind: str,
    message: str,
    gfl: Any,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / 'mine.py').write_text(LOSSES_OF_ONES_OWN)
    (tmp_path / 'broken.py').write_text('x\n')
    (tmp_path / 'needy.py').write_text('import not_there\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = dict(type=kind, site='features')
    with pytest.raises(ValueError, match=rf'^terms\.mine{message}'):
        resolve_terms(gfl, plan, dict(mine=cfg), None)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    'removes what is not there': (
        dict(logit=None),
        "terms.logit: there is no such term; did you mean 'logits'? "
        "Valid: 'boxes', 'features', 'logits'",
    ),
    'not a dict': (
        dict(logits=2.0),
        'terms.logits: expected a dict, or None to remove it, but got 2.0',
    ),
    'no type': (
        dict(logit=dict(weight=0.5)),
        "terms.logit: no default term has this name; did you mean 'logits'? Valid: "
        "'boxes', 'features', 'logits'. A term of your own needs the type of its loss: "
        f'{[name.strip(chr(39)) for name in LOSSES.split(", ")]}',
    ),
    'its default taken out': (
        dict(logits=dict(_delete_=True, weight=0.5)),
        'terms.logits: _delete_ has taken out the default, and its loss with it. A '
        'term of your own needs the type of its loss: ',
    ),
    'deletes by text': (
        dict(_delete_='False'),
        "terms._delete_: expected True or False, but got 'False'",
    ),
    'deletes one by text': (
        dict(logits=dict(_delete_='False', type='PKDLoss')),
        "terms.logits._delete_: expected True or False, but got 'False'",
    ),
    'a name that is none': (
        {3: dict(type='PKDLoss', site='features')},
        'terms: expected names as keys, but got 3',
    ),
    'several sites': (
        dict(mine=dict(type='PKDLoss', site=['features', 'backbone.layer3'])),
        'terms.mine.site: expected one name of a site or module, but got '
        "['features', 'backbone.layer3']; several sites are several terms",
    ),
    'a misspelt path of a loss': (
        dict(mine=dict(type='mmselfdistill.losses.PKDLos', site='features')),
        "terms.mine.type: unknown loss 'mmselfdistill.losses.PKDLos'; "
        "'mmselfdistill.losses' has no such loss; did you mean 'PKDLoss'? Valid: "
        f'{LOSSES}',
    ),
    'a class of something else': (
        dict(mine=dict(type=int, site='features')),
        "terms.mine.type: unknown loss <class 'int'>; it is neither a name nor a class "
        'of losses',
    ),
    'a module that is not there': (
        dict(mine=dict(type='my_losses.MyLoss', site='features')),
        "terms.mine.type: unknown loss 'my_losses.MyLoss'; 'my_losses' is not "
        "imported: ModuleNotFoundError: No module named 'my_losses'. Is its folder in "
        'PYTHONPATH?',
    ),
    'unknown type': (
        dict(logits=dict(type='SoftTargetLos')),
        "terms.logits.type: unknown loss 'SoftTargetLos'; did you mean "
        f"'SoftTargetLoss'? Valid: {LOSSES}, or one of your own, as 'my_module.MyLoss'",
    ),
    'unknown argument': (
        dict(logits=dict(temprature=2.0)),
        "terms.logits: SoftTargetLoss has no argument 'temprature'; did you mean "
        "'temperature'? Valid: 'beta', 'on', 'schedule', 'sharpen', 'site', "
        "'temperature', 'type', 'weight'",
    ),
    'misspelt weight': (
        dict(logits=dict(wieght=2.0)),
        "terms.logits: SoftTargetLoss has no argument 'wieght'; did you mean 'weight'?",
    ),
    'negative weight': (
        dict(boxes=dict(weight=-0.25)),
        'terms.boxes.weight: expected a number >= 0, but got -0.25',
    ),
    'weight that is no number': (
        dict(boxes=dict(weight='1')),
        "terms.boxes.weight: expected a number >= 0, but got '1'",
    ),
    'wrong schedule': (
        dict(logits=dict(schedule='cosin')),
        "terms.logits.schedule.type: unknown 'cosin'; did you mean 'cosine'?",
    ),
    'the key of another on images without labels': (
        dict(logits_unlabeled=dict(type='SoftTargetLoss', site='logits')),
        "terms.logits_unlabeled: it has the key 'loss_sd_logits_unlabeled' in the loss "
        'dict, and so has terms.logits; give the term another name',
    ),
    'the key of the weight of another': (
        dict(boxes_weight=dict(type='SoftTargetLoss', site='logits')),
        "terms.boxes_weight: it has the key 'sd_boxes_weight' in the loss dict",
    ),
    'the key of what is logged besides': (
        dict(task_weight=dict(type='SoftTargetLoss', site='logits')),
        "terms.task_weight: it has the key 'sd_task_weight' in the loss dict, and so "
        'has task_weight; give the term another name',
    ),
    'nothing left': (
        dict(features=None, logits=None, boxes=None),
        'terms: no term is left after merging with the defaults (boxes, features, '
        'logits); keep one, or set loss_weight=0 to train without distillation',
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_are_named_with_what_is_valid(
    case: str, gfl: Any, plan: Plan
) -> None:
    configs, message = WRONG[case]
    with pytest.raises(ValueError, match='^' + re.escape(message)):
        resolve_terms(gfl, plan, configs, None)


@pytest.mark.parametrize(
    'configs',
    [
        dict(logits=dict(on='unlabeled')),
        # by default it is for these alone
        dict(extra=dict(weight=2.0)),
        dict(extra=dict(type='FeatureMSELoss')),
    ],
)
def test_a_term_for_images_without_labels_needs_them(
    configs: Any, gfl: Any, plan: Plan
) -> None:
    extra = replace(
        plan.site('logits'),
        name='extra',
        default=dict(type='SoftTargetLoss', on='unlabeled'),
    )
    plan = replace(plan, sites=(*plan.sites, extra))
    # the user did not write it
    found = resolve_terms(gfl, plan, dict(logits=dict(weight=2.0)), None)
    assert {term.name for term in found} == {'features', 'logits', 'boxes'}
    (name,) = configs
    message = rf"^terms\.{name}\.on: 'unlabeled', but there are no images without"
    with pytest.raises(ValueError, match=message):
        resolve_terms(gfl, plan, configs, None)
    term = only(resolve_terms(gfl, plan, configs, None, unlabeled=True), name)
    assert term.on == term.config['on'] == 'unlabeled'


def test_a_wrong_argument_names_the_term_and_the_range(gfl: Any, plan: Plan) -> None:
    configs = dict(logits=dict(temperature=-1.0))
    with pytest.raises(ValueError, match=r'terms\.logits: .*temperature.*> 0.*-1\.0'):
        resolve_terms(gfl, plan, configs, None)


@pytest.mark.parametrize(
    ('name', 'cfg', 'given'),
    [
        ('mine', dict(type='PKDLoss', site='logit'), 'logit'),
        # a term without a site is at the site of its own name
        ('logist', dict(type='SoftTargetLoss'), 'logist'),
    ],
)
def test_an_unknown_site_is_answered_with_sites_and_parts(
    gfl: Any, plan: Plan, name: str, cfg: dict[str, Any], given: str
) -> None:
    message = (
        rf"^terms\.{name}\.site: unknown site '{given}' .*\(GFL\); did you mean "
        r"'logits'\? Valid: 'backbone', 'backbone.bn1', .*'boxes', 'data_prep"
    )
    with pytest.raises(ValueError, match=message):
        resolve_terms(gfl, plan, {name: cfg}, None)


def test_modules_deep_in_the_model_are_sites_but_not_listed(
    gfl: Any, plan: Plan
) -> None:
    deep = dict(type='PKDLoss', site='backbone.layer3.0.conv1')
    site = only(resolve_terms(gfl, plan, dict(deep=deep), None), 'deep').site
    assert site.name == 'backbone.layer3.0.conv1'
    assert site.seams == ('backbone.layer3.0.conv1.forward',)
    wrong = dict(type='PKDLoss', site='backbone.layer33')
    with pytest.raises(ValueError) as error:
        resolve_terms(gfl, plan, dict(deep=wrong), None)
    assert "did you mean 'backbone.layer3'?" in str(error.value)
    assert "'bbox_head.gfl_cls'" in str(error.value)
    assert 'conv1.' not in str(error.value)


def test_a_model_that_no_family_covers_says_what_to_do() -> None:
    model = Plain()
    unknown = find_plan(model)
    assert (unknown.name, unknown.sites) == ('unknown model', ())
    kinds = ', '.join(kind.name for kind in FAMILIES)
    expected = (
        f'self_distill: no model family covers Plain. Looked for: {kinds}; the model '
        "has the parts 'encoder', 'classifier'. Name modules by their path, such as "
        "terms=dict(mine=dict(type='PKDLoss', site='backbone.layer3')), or put a "
        'subclass of mmselfdistill.families.Family into mmselfdistill.families.FAMILIES'
    )
    with pytest.raises(ValueError, match='^' + re.escape(expected) + '$'):
        resolve_terms(model, unknown, None, None)
    named = dict(logits=dict(type='SoftTargetLoss'))
    message = "terms.logits.site: unknown site 'logits'. " + expected
    with pytest.raises(ValueError, match='^' + re.escape(message) + '$'):
        resolve_terms(model, unknown, named, None)
    misspelt = dict(mine=dict(type='PKDLoss', site='encoder.5'))
    message = (
        r"^terms\.mine\.site: unknown site 'encoder\.5' .*\(Plain\); did you mean "
        r"'encoder(\.[01])?'\? Valid: 'classifier', 'encoder', 'encoder\.0', "
        r"'encoder\.1'$"
    )
    with pytest.raises(ValueError, match=message):
        resolve_terms(model, unknown, misspelt, None)
