"""Which configs `make zoo` tries, what it remembers of them, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from zoo.configs import Entry, chosen, discover, kind_of, next_of_kind
from zoo.process import portable, tried
from zoo.records import Records
from zoo.report import write_report

TESTS = Path(__file__).parent
CONFIG = """
model = dict(type='{model}', bbox_head=dict(type='{head}'))
train_dataloader = dict()
test_evaluator = dict(type='CocoMetric')
"""
SECOND = '17halftrain_test-mot17halfval'
LATE = """
import sys
from pathlib import Path
import pytest
sys.path.insert(0, {tests!r})
from zoo.process import register, tried
register('mmdet')

@pytest.mark.timeout(2)
def test_late(tmp_path):
    record = tried({key!r}, tmp_path / 'record.json', 2)
    assert record == dict(part='stock', error='took more than 2 s')
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    files = {
        'retina/r50.py': ('RetinaNet', 'RetinaHead'),
        'retina/r101.py': ('RetinaNet', 'RetinaHead'),
        'retina/r50_ghm.py': ('RetinaNet', 'GHMHead'),
        'retina/r50_third.py': ('RetinaNet', 'ThirdHead'),
        'retina/more/a.py': ('RetinaNet', 'FourthHead'),
        'fcos/fcos.py': ('FCOS', 'FCOSHead'),
        'common/schedule.py': ('FCOS', 'FCOSHead'),
    }
    for name, (model, head) in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CONFIG.format(model=model, head=head))
    (tmp_path / 'fcos' / 'tta.py').write_text('tta_model = dict(type="TTA")')
    (tmp_path / 'needy').mkdir()
    (tmp_path / 'needy' / 'needy.py').write_text(
        "custom_imports = dict(imports=['no_such_module'], "
        'allow_failed_imports=False)\n' + CONFIG.format(model='A', head='B')
    )
    return tmp_path


def test_a_folder_is_stood_for_by_the_shortest_names_of_two_kinds(zoo: Path) -> None:
    assert [entry.name for entry in discover('mmdet', zoo)] == [
        'fcos/fcos.py',
        # what cannot be read is tried too, and says why
        'needy/needy.py',
        'retina/r50.py',
        'retina/r50_ghm.py',
    ]
    assert kind_of(zoo / 'fcos/tta.py') is None


def test_a_filter_does_not_change_what_stands_for_a_folder(zoo: Path) -> None:
    names = [entry.name for entry in discover('mmdet', zoo, 'r50')]
    assert names == ['retina/r50.py', 'retina/r50_ghm.py']


def test_the_next_of_a_kind_is_of_that_kind(zoo: Path) -> None:
    other = next_of_kind(Entry('mmdet', 'retina/r50.py'), zoo)
    assert other == Entry('mmdet', 'retina/r101.py')
    assert next_of_kind(Entry('mmdet', 'fcos/fcos.py'), zoo) is None


def test_a_second_choice_is_of_what_does_not_train_in_stock() -> None:
    first = 'mmdet::deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-'
    pattern = '::deepsort|::ssd'
    keys = [entry.key for entry in chosen(pattern, 1, {})]
    assert keys == [f'{first}mot17test.py', 'mmdet::ssd/ssd300_coco.py']
    known = {keys[0]: dict(part='stock'), keys[1]: dict(part='done')}
    second = [entry.key for entry in chosen(pattern, 2, known)]
    assert second == [keys[0].replace('17train_test-mot17test', SECOND)]
    assert [*chosen(pattern, 2, {})] == []
    # the third choice waits for the second
    assert [*chosen(pattern, 3, known)] == []


def test_results_of_another_version_do_not_count(tmp_path: Path) -> None:
    records = Records(tmp_path / 'results.jsonl')
    older = [dict(key=key, version='older', part='plugin') for key in 'ab']
    records.path.write_text(''.join(json.dumps(line) + '\n' for line in older))
    assert records.read() == {}
    records.add('a', dict(part='done'), 1.23)
    found = dict(part='done', key='a', version=records.version, seconds=1.2)
    assert records.read() == dict(a=found)
    # a page is written of them all the same, where there is no newer one
    assert records.newest() == [found, older[1]]
    records.compact()
    assert records.every() == [found, older[1]]


def test_a_process_that_dies_is_known_by_its_code(tmp_path: Path) -> None:
    config = tmp_path / 'dies.py'
    config.write_text("__import__('os').kill(__import__('os').getpid(), 9)")
    record = tried(f'mmdet::{config}', tmp_path / 'record.json', 60)
    assert record == dict(part='stock', error='the process ended with code -9')


def test_a_config_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    config = tmp_path / 'waits.py'
    config.write_text("__import__('time').sleep(60)")
    (tmp_path / 'test_late.py').write_text(
        LATE.format(tests=str(TESTS), key=f'mmdet::{config}')
    )
    pytest_ = [sys.executable, '-W', 'ignore', '-m', 'pytest', '-p', 'no:cacheprovider']
    done = subprocess.run(
        [*pytest_, 'test_late.py'], cwd=tmp_path, capture_output=True, text=True
    )
    assert '1 passed' in done.stdout, done.stdout


def test_the_report_counts_its_rows(tmp_path: Path) -> None:
    def term(equal: float) -> dict[str, Any]:
        return dict(equal=equal, apart=0.5)

    write_report(
        tmp_path / 'zoo.md',
        [
            dict(
                key='mmdet::a/a.py',
                version='today',
                part='done',
                terms=dict(logits=term(0.0)),
                unlabeled=dict(error='ValueError: no text'),
            ),
            dict(
                key='mmdet::b/b.py',
                version='old',
                part='done',
                terms=dict(boxes=term(1e-8)),
                unlabeled=dict(terms=['boxes', 'proposals']),
            ),
            dict(
                key='mmdet::c/c.py', version='old', part='plugin', error='KeyError: c'
            ),
            dict(
                key='mmseg::d/d.py',
                version='old',
                part='stock',
                error='No module | at all',
            ),
        ],
        'today',
        untried=7,
    )
    text = (tmp_path / 'zoo.md').read_text()
    for line in (
        'and PyTorch): `old`: 3, `today` (when this was written): 1.',
        '| tried | 4 |',
        '| not tried yet | 7 |',
        '| train in stock | 3 |',
        '| train with the plugin | 2 |',
        '| of these, on images without labels too | 1 |',
        '| a/a |  | logits | all exactly 0 | no | trains |',
        '- a/a: ValueError: no text',
        '| all terms exactly 0 at equal weights | 1 |',
        '| largest term at equal weights, of its scale | 2e-08 |',
        '| b/b |  | boxes | boxes 2e-08 | all terms | trains |',
        '| c/c |  |  |  |  | FAILS: KeyError: c |',
        '| d/d |  |  |  |  | does not train in stock: No module \\| at all |',
    ):
        assert line in text


def test_records_name_no_folder_of_this_machine() -> None:
    for given, kept in (
        ('File "/a/b/lib/python3.11/site-packages/mmdet/x.py"', 'File "mmdet/x.py"'),
        ('File "/a/lib/python3.11/re.py", line 1', 'File "re.py", line 1'),
        (f'in {Path(__file__).resolve()}', 'in tests/test_zoo_suite.py'),
        ('size 4 / 55', 'size 4 / 55'),
    ):
        assert portable(given) == kept
