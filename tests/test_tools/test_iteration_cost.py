"""The benchmark of cost measures every kind alike, once, and goes on after an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.optim import OptimWrapper
from torch import Tensor

from mmselfdistill.containers import leaves
from tools.benchmarks.cost import jobs_of, main, parse_args
from tools.benchmarks.iterations import (
    ASKED_FOR,
    KINDS,
    WARM_UP,
    Iterations,
    in_turns,
    only,
)
from tools.benchmarks.results import Results, in_words, ratio, short
from tools.benchmarks.subjects import make_subject

ROOT = Path(__file__).parents[2]

DIGITS = ROOT / 'configs' / 'digits'
RETINANET = str(DIGITS / 'retinanet_r18_fpn_50e_digits.py')
MASK_RCNN = str(DIGITS / 'mask-rcnn_r18_fpn_50e_digits.py')


def test_every_kind_is_measured_and_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / 'cost.json'
    wrong = tmp_path / 'wrong.py'
    wrong.write_text("default_scope = 'mmdet'\nmodel = dict(type='NoSuchModel')\n")
    arguments = [str(wrong), RETINANET, '--sizes', '64', '--rounds', '2']
    main([*arguments, '--out', str(out)])
    failed, measured = json.loads(out.read_text())['records']
    assert 'NoSuchModel' in failed['error']
    assert measured['settings']['model'] == RETINANET
    rounds = {kind: len(seconds) for kind, seconds in measured['seconds'].items()}
    assert rounds == dict.fromkeys([k for k in KINDS if k not in ASKED_FOR], 2)
    main([*arguments, '--out', str(out)])
    again = json.loads(out.read_text())['records']
    # what has failed is tried again; what was measured is not
    assert [each for each in again if 'error' not in each] == [measured]
    # what other code was measured by is no figure of today
    measured['versions']['source'] = 'another'
    out.write_text(json.dumps(dict(records=[measured])))
    assert Results(out).find(measured['settings']) is None


def test_an_edited_config_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(f'_base_ = {RETINANET!r}\n')
    args = parse_args([str(path), '--sizes', '64', '96'])
    before = jobs_of(args)
    results = Results(tmp_path / 'cost.json')
    for job in before:
        results.add(job, seconds={})
    assert all(results.find(job) for job in jobs_of(args))
    # what it inherits counts too
    path.write_text(f'_base_ = {MASK_RCNN!r}\n')
    after = jobs_of(args)
    assert [job['size'] for job in after] == [64, 96]
    assert not any(results.find(job) for job in after)
    # what cannot be read is said when it is measured
    path.write_text('_base_ = (\n')
    assert [job['model'] for job in jobs_of(args)] == [str(path)] * 2


def test_published_figures_are_those_of_the_same_jobs() -> None:
    records = Results(ROOT / 'docs/benchmarks/cost_h100.json').records
    published = [r['settings'] for r in records if r['settings']['mode'] == 'kinds']
    args = parse_args(['--rounds', '8'])
    device = dict(device=published[0]['device'])
    asked = [{**job, **device} for job in jobs_of(args)]
    assert [job for job in asked if job in published] == asked


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', '1'], '--rounds: expected at least 2, but got 1'),
        (['--models', 'nothing'], "--models: 'nothing' matches none of mmdet::retina"),
        (['--scaling', '--models', 'gfl'], '--scaling: expected some of mmdet::retina'),
    ],
)
def test_a_wrong_setting_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert message in capsys.readouterr().err + str(ended.value)


def test_every_kind_runs_once_a_round_in_no_fixed_order() -> None:
    ran: list[str] = []

    def run(kind: str) -> tuple[float, int | None]:
        ran.append(kind)
        return len(ran), 100 + len(ran)

    seconds, peaks = in_turns('abc', run, rounds=5)
    rounds = [''.join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert len(rounds) == 5 + WARM_UP
    assert {''.join(sorted(each)) for each in rounds} == {'abc'}
    assert len(set(rounds)) > 1
    counted = [i + 1 for i, kind in enumerate(ran) if kind == 'a' and i >= 3 * WARM_UP]
    assert seconds['a'] == counted
    assert peaks['a'] == 100 + counted[-1]


def test_ratios_are_of_the_same_round() -> None:
    record: dict[str, Any] = dict(seconds=dict(stock=[1, 2, 4], ours=[1.5, 2, 8]))
    # 1.5, 1, 2
    assert ratio(record, 'ours', 'stock') == [1.25, 1.5, 1.75]
    assert in_words([1.25, 1.5, 1.75]) == '1.50 (1.25-1.75)'
    assert ratio(record, 'ours', 'limit') == []
    assert short('mmdet::gfl/gfl_r50_fpn_1x_coco.py') == 'gfl_r50'


def test_as_many_images_without_labels_are_used() -> None:
    iterations = Iterations(make_subject(RETINANET, 64, 3), ('ours', 'unlabeled'))
    for kind in iterations.kinds * 2:
        iterations.run(kind)
    unlabeled = iterations.distillers['unlabeled'].unlabeled
    assert unlabeled.used == 2 and unlabeled.view is not None
    assert unlabeled.comparison.shapes['features'][0].startswith('3x')


def test_a_config_with_mixed_precision_is_measured_without(tmp_path: Path) -> None:
    path = tmp_path / 'amp.py'
    path.write_text(
        f'_base_ = {RETINANET!r}\n'
        "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic',\n"
        "    dtype='float16', use_fsdp=False, clip_grad=dict(max_norm=1.0))\n"
    )
    wrapper = make_subject(str(path), 64, 1).wrapper
    assert type(wrapper) is OptimWrapper
    # what belongs to either stays
    assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)


def test_what_a_teacher_has_to_do_is_called_without_a_graph() -> None:
    subject = make_subject(MASK_RCNN, 64, 3)
    assert len(subject.batch['inputs']) == len(subject.batch['data_samples']) == 3
    iterations = Iterations(subject, ('stock', 'limit', 'boxes'))
    assert iterations.needed is not None
    calls = iterations.needed.calls()
    assert [call.path for call in calls] == [
        'extract_feat',
        'roi_head._bbox_forward',
        'roi_head._mask_forward',
    ]
    given = [v for c in calls for _, v in leaves(c.args) if isinstance(v, Tensor)]
    assert given and not any(tensor.requires_grad for tensor in given)
    settings = only('features')(subject.model)
    assert settings is not None
    removed = dict.fromkeys(('logits', 'boxes', 'masks'))
    assert removed.items() <= settings['terms'].items()
    assert 'features' not in settings['terms']
    assert only('nothing')(subject.model) is None
