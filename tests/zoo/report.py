"""Write docs/zoo.md from the records of the configs that were tried.

    PYTHONPATH=tests python -m zoo.report docs/benchmarks/zoo_openmmlab docs/zoo.md

The newest record of each config is written. The page says how many of them are of which
version of the package. Older records of a config are removed from the file.
"""

from __future__ import annotations

import argparse
from collections import Counter
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Sequence

from mmselfdistill.testing.identity import TOLERANCE
from zoo.configs import chosen
from zoo.records import Records

NEEDED = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation')
# some models are made with
OPTIONAL = ('mmpretrain', 'timm', 'transformers', 'torchvision')

HEAD = """# What trains with the plugin

Written by `make zoo`; do not edit. Of each folder of configs of both zoos,
the one with the shortest name and one of another kind were tried on this machine's
CPU, each in a process of its own, with random weights, on images of noise, and with no
setting for the model. A row that trains with the plugin has passed all of this:

- With equal weights, and with what is random in the student off as in its teacher,
  every term is 0 to within 1e-6 of its value at disturbed weights. PyTorch multiplies
  matrices in another order where a weight has no gradient: where rounding adds up to
  more, the row says so, and the term is exactly 0 with the student's weights frozen
  too. The losses of the model itself are bitwise those without the plugin, and no
  buffer of the teacher changes.
- At disturbed weights every term is positive, and its gradient reaches the student; of
  all terms together it reaches the backbone, unless that is frozen.
- On two images without labels, with no setting for the model ("without labels"): at
  equal weights every term is 0 likewise; at disturbed weights every term is positive,
  and its gradient reaches the student; a view of the images changes it; the losses on
  the images with labels, and the running statistics, are bitwise those without. A row
  whose model does not run there says why, below the table; it trains all the same.
- Three optimizer steps with a running average as the teacher: all terms are finite, at
  least one is positive, and the keys of the `state_dict` are the stock model's.

"Does not train in stock" is what the stock model's own step said, without the plugin.
SyncBN was turned into BN, as it must be without a GPU, and weights to download were
left out.
"""


def write_report(
    path: Path, records: Sequence[dict[str, Any]], version: str, untried: int
) -> None:
    """Write the counts, then one row for each config.

    Args:
        path (Path): The file.
        records (Sequence[dict]): What was found, in the zoo's order.
        version (str): The version of the package, as in the records.
        untried (int): How many configs there are without a record.
    """
    stock = [record for record in records if record['part'] != 'stock']
    done = [record for record in stock if record['part'] == 'done']
    ratios = [max(_ratios(record)) for record in done]
    unlabeled = sum('terms' in record['unlabeled'] for record in done)
    exact, largest = sum(ratio == 0 for ratio in ratios), max(ratios, default=0)
    lines = [
        HEAD,
        'The rows were tried on these versions of the package (a hash of its source,',
        f'and PyTorch): {_sources(records, version)}.\n',
        f'Versions: {", ".join(_versions())}.\n',
        '| | configs |',
        '|---|---|',
        f'| tried | {len(records)} |',
        f'| not tried yet | {untried} |',
        f'| train in stock | {len(stock)} |',
        f'| train with the plugin | {len(done)} |',
        f'| of these, on images without labels too | {unlabeled} |',
        f'| all terms exactly 0 at equal weights | {exact} |',
        f'| largest term at equal weights, of its scale | {largest:.0e} |',
    ]
    for zoo in dict.fromkeys(record['key'].split('::')[0] for record in records):
        here = [record for record in records if record['key'].startswith(f'{zoo}::')]
        lines += ['', f'## {zoo}', '', *_table(here)]
    lines += ['', *_refusals(done)]
    lines += ['', *_silent(done)]
    path.write_text('\n'.join(lines) + '\n')


def _sources(records: Sequence[dict[str, Any]], version: str) -> str:
    counts = Counter(record['version'] for record in records)
    return ', '.join(
        f'`{each}`{" (when this was written)" if each == version else ""}: {count}'
        for each, count in counts.most_common()
    )


def _silent(records: Sequence[dict[str, Any]]) -> list[str]:
    counts = Counter(name for record in records for name in record.get('silent', []))
    return [
        '## What the terms do not depend on',
        '',
        'Each part of the teacher was disturbed by itself. The weights of these moved',
        'no term: heads that are not compared, proposals and queries that are the',
        "student's on both sides, and what only other steps use.",
        '',
        '| part | configs |',
        '|---|---|',
        *(f'| `{name}` | {count} |' for name, count in counts.most_common()),
    ]


def _refusals(records: Sequence[dict[str, Any]]) -> list[str]:
    refused = [record for record in records if 'error' in record['unlabeled']]
    return [
        '## What does not run on images without labels',
        '',
        *(
            f'- {record["key"].split("::")[1][: -len(".py")]}: '
            f'{_written(record["unlabeled"]["error"])}'
            for record in refused
        ),
    ]


def _without_labels(record: dict[str, Any]) -> str:
    terms = record['unlabeled'].get('terms')
    if terms is None:
        return 'no'
    return 'all terms' if {*record['terms']} <= {*terms} else ', '.join(terms)


def _table(records: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        '| config | family | terms | at equal weights | without labels | result |',
        '|---|---|---|---|---|---|',
    ]
    for record in records:
        name = record['key'].split('::')[1][: -len('.py')]
        cells = [name, record.get('family', ''), '', '', '', _result(record)]
        if 'terms' in record:
            cells[2] = ', '.join(record['terms'])
            cells[3] = _identity(record)
        if 'unlabeled' in record:
            cells[4] = _without_labels(record)
        rows.append(f'| {" | ".join(cells)} |')
    return rows


def _result(record: dict[str, Any]) -> str:
    if record['part'] == 'done':
        return 'trains'
    kind = 'does not train in stock' if record['part'] == 'stock' else 'FAILS'
    return f'{kind}: {_written(record.get("error", "unknown"))}'


def _written(error: str) -> str:
    return ' '.join(error.split())[:160].replace('|', '\\|')


def _ratios(record: dict[str, Any]) -> list[float]:
    terms = record['terms'].values()
    return [term['equal'] / term['apart'] if term['equal'] else 0.0 for term in terms]


def _identity(record: dict[str, Any]) -> str:
    inexact = {
        name: term
        for name, term in record['terms'].items()
        if term['equal'] or not term['apart']
    }
    if not inexact:
        return 'all exactly 0'
    cells = []
    for name, term in inexact.items():
        ratio = term['equal'] / (term['apart'] or 1)
        rounded = ' (0 with frozen weights)' if ratio > TOLERANCE else ''
        cells.append(f'{name} {ratio:.0e}{rounded}')
    return ', '.join(cells)


def _versions() -> list[str]:
    found = []
    for name in (*NEEDED, *OPTIONAL):
        for package in (
            name,
            f'onedl-{name}',
            f'onedl-{name.replace("det", "detection")}',
        ):
            try:
                found.append(f'{package} {version_of(package)}')
                break
            except PackageNotFoundError:
                continue
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='of results.jsonl')
    parser.add_argument('out', type=Path, help='the page to write')
    args = parser.parse_args()
    records = Records(args.folder / 'results.jsonl')
    newest = records.newest()
    if not newest:
        raise SystemExit(f'{records.path}: no config was tried')
    records.compact()
    known = {record['key'] for record in newest}
    untried = sum(entry.key not in known for entry in chosen('', 1, {}))
    write_report(args.out, newest, records.version, untried)


if __name__ == '__main__':
    main()
