"""The distiller at work: weights, silence, errors, and the table it prints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import added, detection_batch, disturb
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmselfdistill.distiller import build_distiller, describe
from mmselfdistill.losses import pkd_loss
from mmselfdistill.teacher import make_teacher, still, tensors_of

DENSE = {'features', 'logits', 'boxes'}


Small = tuple[Any, dict[str, Any]]


@pytest.fixture(scope='module')
def built() -> Small:
    """A small GFL: three levels, ten classes."""
    path = Path(__file__).parents[1] / 'configs/digits/gfl_r18_fpn_50e_digits.py'
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    still(model)
    return model, model.data_preprocessor(detection_batch(), True)


class Setting:
    """A distiller at work on the small model, its teacher apart from it."""

    def __init__(self, built: Small, terms: Any = None, **arguments: Any) -> None:
        self.model, self.data = built
        self.distiller = build_distiller(self.model, terms, **arguments)
        self.teacher = make_teacher(self.model)
        disturb(self.teacher)
        self.distiller.teacher = self.teacher
        self.teacher_runs = 0
        self.teacher.get_submodule('backbone').register_forward_hook(self._count)
        # whether each of the student's runs was recorded
        self.recorded: list[bool] = []

    def _count(self, *_: Any) -> None:
        self.teacher_runs += 1

    def _note(self, *_: Any) -> None:
        self.recorded.append('extract_feat' in vars(self.model))

    def __enter__(self) -> Setting:
        self.distiller.attach()
        self.noting = self.model.backbone.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.distiller.detach()
        self.noting.remove()

    def losses(self, **changes: Any) -> dict[str, Any]:
        data = {**copy.deepcopy(self.data), **changes}
        result: dict[str, Any] = self.model(**data, mode='loss')
        return result


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
        losses = added(setting.losses())
        ours = setting.model.extract_feat(setting.data['inputs'])
        theirs: Any = setting.teacher
        levels = zip(ours, theirs.extract_feat(setting.data['inputs']))
        values = [float(pkd_loss(s, t)) for s, t in levels]
    assert len(values) == 3
    assert float(losses['features']) == pytest.approx(3 * sum(values) / 3, rel=1e-6)
    assert float(losses['logits']) == 0.0
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
        assert setting.teacher_runs == 0
        assert {term: float(v) for term, v in added(silent).items()} == {
            'features': 0.0,
            'logits': 0.0,
        }
        setting.losses()
        assert setting.teacher_runs == 0
        # the first iteration is recorded for the table
        assert setting.recorded == [True, False]
        setting.distiller.progress = 0.6
        assert float(added(setting.losses())['logits'].detach()) > 0
        assert setting.teacher_runs == 1
    with Setting(built, loss_weight=0.0) as setting:
        setting.losses()
        assert setting.teacher_runs == 0

    weight = model.backbone.conv1.weight
    gradients = [
        torch.autograd.grad(model.parse_losses(losses)[0], weight)[0]
        for losses in (plain, silent)
    ]
    assert torch.equal(*gradients)


def test_only_losses_are_extended(built: Small) -> None:
    with Setting(built) as setting, torch.no_grad():
        expected = setting.losses()
        assert setting.teacher_runs == 1
        setting.model(setting.data['inputs'], mode='tensor')
        setting.model(setting.data['inputs'])
        setting.model.eval()
        setting.model(**copy.deepcopy(setting.data), mode='predict')
        still(setting.model)
        assert setting.teacher_runs == 1
        # as it may be called without names
        inputs, samples = setting.data['inputs'], setting.data['data_samples']
        found = setting.model(inputs, copy.deepcopy(samples), 'loss')
    assert setting.teacher_runs == 2
    assert found.keys() == expected.keys()
    for term in DENSE:
        assert torch.equal(found[f'loss_sd_{term}'], expected[f'loss_sd_{term}'])


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
        assert setting.teacher_runs == 1
        # and the next iteration is as any other
        found = setting.losses()
        assert setting.teacher_runs == 2
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


def test_the_table_says_what_is_compared_and_what_the_teacher_costs(
    built: Small,
) -> None:
    terms = dict(logits=dict(weight=3.0), boxes=dict(schedule='cosine'))
    setting = Setting(built, terms, loss_weight=0.5)
    # before there is a teacher, the student's own shapes are shown
    setting.distiller.teacher = None
    with setting:
        setting.losses()
    text = describe(setting.distiller)
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    # 2 images of 16x16, 8x8 and 4x4 positions; 10 classes, 4 sides of 9 bins
    positions = 2 * (16 * 16 + 8 * 8 + 4 * 4)
    bins = 4 * 9
    shapes = '2x32x16x16 2x32x8x8 2x32x4x4'
    assert cells == [
        ['term', 'site', 'loss', 'weight', 'schedule', 'tensors'],
        ['features', 'features', 'PKDLoss', '0.25', 'constant', shapes],
        ['logits', 'logits', 'SoftTargetLoss', '1.5', 'constant', f'{positions}x10'],
        ['boxes', 'boxes', 'BoxDistillLoss', '0.125', 'cosine', f'{positions}x{bins}'],
    ]
    first, last = text.splitlines()[0], text.splitlines()[-1]
    assert first.startswith('Self-distillation of GFL (')
    parameters = sum(p.numel() for p in setting.model.parameters())
    size = sum(t.numel() * t.element_size() for t in tensors_of(setting.model).values())
    assert f'{parameters / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB' in last


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
