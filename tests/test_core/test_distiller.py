"""The distiller at work: weights, silence, and errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import added
from setting import Setting, Small

from mmselfdistill.core import loss_trial
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.losses import pkd_loss

DENSE = {'features', 'logits', 'boxes'}


def assert_not_instrumented(model: Any) -> None:
    assert 'extract_feat' not in vars(model)
    assert 'forward' not in vars(model.bbox_head)


def test_a_weight_is_the_product_of_three_factors(built: Small) -> None:
    linear = dict(type='linear', start=1.0, stop=0.0)
    terms = dict(
        logits=dict(weight=3.0, schedule=linear), boxes=dict(schedule=None, weight=4)
    )
    setting = Setting(built, terms, loss_weight=0.5, schedule=dict(begin=0.5))
    distiller = setting.distiller
    distiller.progress = 0.25
    assert distiller.weights() == dict(features=0.0, logits=1.125, boxes=2.0)
    distiller.progress = 0.75
    assert distiller.weights() == dict(features=0.25, logits=0.375, boxes=2.0)
    distiller.teacher = None
    assert distiller.weights() == dict(features=0.0, logits=0.0, boxes=0.0)


def test_a_loss_is_its_weight_times_the_mean_over_levels(built: Small) -> None:
    weights = dict(features=dict(weight=2.0), logits=dict(weight=0.0))
    with Setting(built, weights, loss_weight=1.5) as setting, torch.no_grad():
        whole = setting.losses()
        losses = added(whole)
        ours = setting.model.extract_feat(setting.data['inputs'])
        theirs: Any = setting.teacher
        levels = zip(ours, theirs.extract_feat(setting.data['inputs']))
        values = [float(pkd_loss(s, t)) for s, t in levels]
    assert len(values) == 3
    assert float(losses['features']) == pytest.approx(3 * sum(values) / 3, rel=1e-6)
    assert float(losses['logits']) == 0.0
    # the divergence itself is logged, and its weight
    assert float(whole['sd_features']) == pytest.approx(sum(values) / 3, rel=1e-6)
    assert float(whole['sd_features_weight']) == 3.0
    assert float(whole['sd_logits']) == float(whole['sd_logits_weight']) == 0.0
    assert float(whole['sd_boxes_weight']) == 0.375
    assert float(losses['boxes']) == pytest.approx(0.375 * float(whole['sd_boxes']))
    assert not any(whole[f'sd_{term}'].requires_grad for term in DENSE)
    with Setting(built, weights, loss_weight=3.0) as setting, torch.no_grad():
        doubled = added(setting.losses())
    assert float(doubled['boxes']) == pytest.approx(2 * float(losses['boxes']))


def test_at_weight_zero_the_teacher_is_not_run(built: Small) -> None:
    model, data = built
    plain = model(**copy.deepcopy(data), mode='loss')
    schedule = dict(begin=0.5)
    with Setting(built, dict(boxes=None), schedule=schedule) as setting:
        setting.distiller.progress = 0.4
        stream = torch.get_rng_state()
        silent = setting.losses()
        assert torch.equal(torch.get_rng_state(), stream)
        # in the first iteration every term is tried
        assert setting.teacher_runs == 1
        assert {term: float(v) for term, v in added(silent).items()} == {
            'features': 0.0,
            'logits': 0.0,
        }
        setting.losses()
        assert setting.teacher_runs == 1
        assert setting.recorded == [True, False]
        assert (setting.distiller.forwards, setting.distiller.computed) == (2, 0)
        setting.distiller.progress = 0.6
        assert float(added(setting.losses())['logits'].detach()) > 0
        assert setting.teacher_runs == 2
        assert (setting.distiller.forwards, setting.distiller.computed) == (3, 1)
    with Setting(built, loss_weight=0.0) as setting:
        for _ in range(3):
            setting.losses()
        assert setting.teacher_runs == 0
        assert setting.recorded == [True, False, False]
        assert (setting.distiller.forwards, setting.distiller.computed) == (3, 0)
    # before there is a teacher, none is run
    with Setting(built) as setting:
        setting.distiller.teacher = None
        setting.losses()
        assert (setting.teacher_runs, setting.distiller.computed) == (0, 0)

    weight = model.backbone.conv1.weight
    gradients = [
        torch.autograd.grad(model.parse_losses(losses)[0], weight)[0]
        for losses in (plain, silent)
    ]
    assert torch.equal(*gradients)


def test_only_losses_are_extended(built: Small) -> None:
    with Setting(built) as setting, torch.no_grad():
        expected = setting.losses()
        # tried, and computed
        assert setting.teacher_runs == 2
        setting.model(setting.data['inputs'], mode='tensor')
        setting.model(setting.data['inputs'])
        setting.model.eval()
        setting.model(**copy.deepcopy(setting.data), mode='predict')
        still(setting.model)
        assert (setting.teacher_runs, setting.distiller.forwards) == (2, 1)
        # as it may be called without names; tried again, since there was no gradient
        inputs, samples = setting.data['inputs'], setting.data['data_samples']
        found = setting.model(inputs, copy.deepcopy(samples), 'loss')
    assert (setting.teacher_runs, setting.distiller.forwards) == (4, 2)
    assert found.keys() == expected.keys()
    for term in DENSE:
        assert torch.equal(found[f'loss_sd_{term}'], expected[f'loss_sd_{term}'])


def test_only_the_terms_are_summed_with_the_losses(built: Small) -> None:
    terms: Any = dict(features=None, logits=None, my_loss=dict(site='features'))
    terms['my_loss']['type'] = 'PKDLoss'
    with Setting(built, terms, loss_weight=2.0) as setting:
        losses = setting.losses()
    stock = {key: loss for key, loss in losses.items() if 'sd_' not in key}
    total, _ = setting.model.parse_losses(losses)
    task, _ = setting.model.parse_losses(stock)
    ours = added(losses)
    assert ours.keys() == {'boxes', 'my_loss'}
    expected = task + ours['boxes'] + ours['my_loss']
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert losses.keys() - stock.keys() - {f'loss_sd_{name}' for name in ours} == {
        'sd_boxes',
        'sd_boxes_weight',
        'sd_my_term',
        'sd_my_term_weight',
    }
    assert float(losses['sd_my_term_weight']) == 2.0


def test_a_trial_stands_in_for_a_teacher_that_comes_later(built: Small) -> None:
    with Setting(built) as setting:
        setting.distiller.teacher, setting.distiller.trial = None, setting.teacher
        losses = setting.losses()
        assert {
            name: float(loss) for name, loss in added(losses).items()
        } == dict.fromkeys(DENSE, 0.0)
        assert (setting.teacher_runs, setting.distiller.computed) == (1, 0)
        assert setting.distiller.trial is None
        setting.losses()
        assert setting.teacher_runs == 1
    # what would fail hours later fails now
    with Setting(built) as setting:
        setting.distiller.teacher, setting.distiller.trial = None, setting.teacher
        setting.teacher.get_submodule('bbox_head').forward = lambda *args: None
        with pytest.raises(RuntimeError, match='did not return what the student'):
            setting.losses()


def test_a_loss_that_is_already_there_is_an_error(
    built: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = built
    stock = model.loss
    clash = dict(loss_sd_boxes=torch.zeros(()), loss_sd_logits=torch.zeros(()))
    monkeypatch.setattr(model, 'loss', lambda *args: {**stock(*args), **clash})
    message = r"the model already has the losses \['loss_sd_boxes', 'loss_sd_logits'\]"
    with Setting(built) as setting, pytest.raises(KeyError, match=message):
        setting.losses()
    assert_not_instrumented(model)


def test_an_error_in_the_model_leaves_it_uninstrumented(built: Small) -> None:
    with Setting(built) as setting:
        expected = setting.losses()
        with pytest.raises(TypeError, match='NoneType'):
            setting.losses(data_samples=None)
        assert_not_instrumented(setting.model)
        assert setting.teacher_runs == 2
        # and the next iteration is as any other
        found = setting.losses()
        assert setting.teacher_runs == 3
    for term in DENSE:
        assert torch.equal(found[f'loss_sd_{term}'], expected[f'loss_sd_{term}'])
    assert_not_instrumented(setting.model)


def test_a_site_that_the_loss_does_not_use_is_an_error(built: Small) -> None:
    unused = dict(type='PKDLoss', site='data_preprocessor')
    message = r"terms\.mine: the site 'data_preprocessor' gave no tensor in the first"
    with Setting(built, dict(mine=unused)) as setting:
        with pytest.raises(ValueError, match=message):
            setting.losses()
        assert_not_instrumented(setting.model)


def test_a_loss_that_does_not_fit_is_named_before_it_is_due(built: Small) -> None:
    late = dict(type='constant', begin=0.5)
    wrong = dict(type='BoxDistillLoss', schedule=late)
    message = r"^terms\.logits: BoxDistillLoss fails at the site 'logits': \w+Error: "
    with Setting(built, dict(logits=wrong)) as setting:
        assert setting.distiller.weights()['logits'] == 0
        with pytest.raises(ValueError, match=message):
            setting.losses()
        assert_not_instrumented(setting.model)


def test_what_follows_changes_in_place_is_refused(built: Small) -> None:
    # its activation writes over what it returned
    changed = dict(type='FeatureMSELoss', site='backbone.layer1.0.bn1')
    message = (
        r"^terms\.mine: what 'backbone\.layer1\.0\.bn1' returns is changed in place"
    )
    with Setting(built, dict(mine=changed)) as setting:
        with pytest.raises(ValueError, match=message):
            setting.losses()
        assert_not_instrumented(setting.model)
    whole = dict(type='FeatureMSELoss', site='backbone.layer1.0')
    with Setting(built, dict(mine=whole)) as setting:
        assert 'loss_sd_mine' in setting.losses()


def test_a_site_without_gradient_is_refused_or_warned_of(built: Small) -> None:
    frozen = dict(type='FeatureMSELoss', site='backbone.layer1')
    layer: Any = built[0].backbone.layer1
    stem = [*built[0].backbone.conv1.parameters(), *built[0].backbone.bn1.parameters()]
    parts = [p for p in [*stem, *layer.parameters()] if p.requires_grad]
    for parameter in parts:
        parameter.requires_grad_(False)
    try:
        message = (
            r"^terms\.mine: no gradient reaches .* 'backbone\.layer1': it is frozen"
        )
        refused = pytest.raises(ValueError, match=message)
        with Setting(built, dict(mine=frozen)) as setting, refused:
            setting.losses()
    finally:
        for parameter in parts:
            parameter.requires_grad_(True)
    built[0].requires_grad_(False)
    try:
        # the family's own site, in a model that its user has frozen
        with Setting(built) as setting:
            setting.losses()
    finally:
        built[0].requires_grad_(True)


@pytest.mark.parametrize(
    ('loss', 'site', 'assumed'),
    [
        ('SoftTargetLoss', 'bbox_head.gfl_cls', "'softmax'"),
        ('PKDLoss', 'bbox_head.gfl_cls', ''),
        # there the head says what it is
        ('SoftTargetLoss', 'logits', ''),
    ],
)
def test_a_loss_that_has_to_assume_what_it_compares_says_so(
    loss: str, site: str, assumed: str, built: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loss_trial, 'print_log', lambda text, **_: said.append(text))
    terms: Any = dict(features=None, boxes=None, logits=None)
    terms['mine'] = dict(type=loss, site=site)
    with Setting(built, terms) as setting:
        setting.losses()
    expected = [
        f'terms.mine: it is not known what the numbers at the site {site!r} are, and '
        f'{loss} takes them for {assumed}'
    ]
    assert said == (expected if assumed else [])


def test_terms_are_float32_under_autocast(built: Small) -> None:
    dtypes: set[torch.dtype] = set()
    model, _ = built
    handle = model.bbox_head.gfl_cls.register_forward_hook(
        lambda module, args, output: dtypes.add(output.dtype)
    )
    with torch.no_grad():
        with Setting(built) as setting:
            exact = added(setting.losses())
            dtypes.clear()
            with torch.autocast('cpu', dtype=torch.bfloat16):
                found = added(setting.losses())
        assert dtypes == {torch.bfloat16}
        with Setting(built) as setting:
            setting.distiller.teacher = make_teacher(setting.model)
            with torch.autocast('cpu', dtype=torch.bfloat16):
                same = added(setting.losses())
    handle.remove()
    assert {loss.dtype for loss in found.values()} == {torch.float32}
    assert [float(loss) for loss in same.values()] == [0.0] * 3
    for term, loss in found.items():
        # bfloat16 has 8 bits, and squares of small gaps double its error
        assert float(loss) == pytest.approx(float(exact[term]), rel=0.1)


def test_a_loss_that_waits_for_a_sure_teacher_may_be_zero_at_first(
    built: Small,
) -> None:
    waits = dict(type='PseudoLabelLoss', threshold=1.0)
    alone = dict(features=None, boxes=None, logits=waits)
    with Setting(built, alone) as setting, torch.no_grad():
        assert float(setting.losses()['loss_sd_logits']) == 0
        # no object anywhere
        head = setting.teacher.get_submodule('bbox_head.gfl_cls')
        head.weight.zero_()
        head.bias.fill_(-200.0)
        loss = float(setting.losses()['loss_sd_logits'])
        model = setting.model
        scores, _ = model.bbox_head(model.extract_feat(setting.data['inputs']))
        yes = sum(float(torch.nn.functional.softplus(each).sum()) for each in scores)
    # the teacher counts no object: the sum is not divided
    assert loss == pytest.approx(yes, rel=1e-5)
