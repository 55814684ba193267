"""Parts of a student that are compiled, by a backend that compiles nothing for long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import OTHERS, Toy, distilled, signs, step

pytestmark = pytest.mark.skipif(
    not hasattr(torch, 'compiler'), reason='PyTorch 2.0 cannot'
)


def compiled(part: str) -> tuple[Toy, dict[str, float]]:
    """Return a student of which a part is compiled, and factors of its teacher."""
    student: Any = Toy()
    torch._dynamo.reset()
    if part == 'forward':
        student.forward = torch.compile(student.forward, backend='eager')
        # compiled before anything is recorded
        student(signs(), mode='loss')
    elif part == 'features':
        compiled = torch.compile(student.extract_feat, backend='eager')
        student.extract_feat = compiled
    elif part == 'head':
        student.bbox_head = torch.compile(student.bbox_head, backend='eager')
        return student, {'backbone': 5.0, 'bbox_head._orig_mod': 7.0}
    else:
        student.bbox_head.compile(backend='eager')
    return student, OTHERS


@pytest.mark.parametrize('part', ['forward', 'features', 'head', 'head in place'])
def test_a_compiled_part_is_recorded_and_repeated(part: str) -> None:
    student, factors = compiled(part)
    with distilled(student, factors) as distiller:
        for _ in range(3):
            assert step(distiller) == dict(features=3, logits=5 * 7 - 2 * 3)


def test_what_is_compiled_stays_so_after_the_first_iteration() -> None:
    compiled, ran = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)

        def run(*given: Any) -> Any:
            ran.append(graph)
            return graph(*given)

        return run

    student: Any = Toy()
    torch._dynamo.reset()
    student.backbone.compile(backend=backend)
    with distilled(student, OTHERS) as distiller:
        assert step(distiller)['logits'] == 5 * 7 - 2 * 3
        # which watches every operation: newer PyTorch runs nothing compiled there
        ran.clear()
        for _ in range(3):
            assert step(distiller)['logits'] == 5 * 7 - 2 * 3
    # the student's, once in each; a copy is not compiled
    assert compiled and len(ran) == 3


def test_a_step_that_is_compiled() -> None:
    student, _ = compiled('forward')
    with distilled(student, OTHERS) as distiller:
        found = torch.compile(step, backend='eager')(distiller)
        assert found == dict(features=3, logits=5 * 7 - 2 * 3)
