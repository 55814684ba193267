"""The examples of docs/extending.md run, and print what the page shows."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from numpy.typing import NDArray

from mmselfdistill.commands.check import check, written
from mmselfdistill.families import FAMILIES

PAGE = (Path(__file__).parents[1] / 'docs/extending.md').read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)


FILES = dict(
    re.findall(r'^```python\n# (\w+)\.py\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)
)
CONFIGS = [name for name, text in FILES.items() if text.startswith('_base_')]
OUTPUTS = [text for text in blocks('text') if 'equal weights' in text]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the files of the page, and forget them afterwards."""
    # what the frameworks register must stay
    register_all_modules()
    families, registered = list(FAMILIES), set(MODELS.module_dict)
    for name, text in FILES.items():
        (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    FAMILIES[:] = families
    for name in set(MODELS.module_dict) - registered:
        MODELS.module_dict.pop(name)
    for name in FILES:
        sys.modules.pop(name, None)


def test_every_block_is_a_file_and_each_config_has_its_output() -> None:
    assert len(FILES) == len(blocks('python'))
    assert len(CONFIGS) == len(OUTPUTS) - 1 == 5


@pytest.mark.parametrize('name', ['channel_wise', 'attention', 'heatmaps'])
def test_a_loss_a_site_and_a_family_take_25_lines(name: str) -> None:
    lines = [line for line in FILES[name].splitlines() if line.strip()]
    assert len(lines) < 27


@pytest.mark.parametrize(('config', 'output'), list(zip(CONFIGS, OUTPUTS[1:])))
def test_examples_are_zero_at_equal_weights_and_print_what_is_shown(
    config: str, output: str, examples: Path
) -> None:
    report = check(Config.fromfile(examples / f'{config}.py'))
    head, *lines = output.splitlines()
    shown = {name: (one, two) for name, one, two, *_ in map(str.split, lines)}
    assert report.problems == []
    assert head == written(report).splitlines()[0]
    assert report.terms.keys() == shown.keys()
    for name, (equal, apart) in shown.items():
        assert float(equal) == report.terms[name].equal == 0.0
        assert report.terms[name].apart == pytest.approx(float(apart), rel=0.2)


def test_the_example_loss_is_the_sum_that_it_says(examples: Path) -> None:
    module = importlib.import_module('channel_wise')
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = module.ChannelWiseLoss(temperature=3.0)(student, teacher, kind='any')

    def softmax(logits: NDArray[Any]) -> NDArray[Any]:
        powers: NDArray[Any] = np.exp(logits / 3.0)
        powers /= powers.sum()
        return powers

    total = 0.0
    for n in range(2):
        for c in range(3):
            p = softmax(teacher[n, c].detach().double().numpy())
            q = softmax(student[n, c].detach().double().numpy())
            total += float((p * np.log(p / q)).sum())
    assert float(loss.detach()) == pytest.approx(9.0 * total / 6, rel=1e-5)
    loss.backward()
    assert student.grad is not None and teacher.grad is None
