"""Two processes with halves of a batch have the gradient of one with all of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import added
from torch import Tensor, nn

from mmselfdistill.core import average
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.teacher import make_teacher
from mmselfdistill.core.terms import resolve_terms
from mmselfdistill.families.plan import Plan, Reading, Rows, Side, Site
from mmselfdistill.families.shared import outputs_of, seams

HEAD = 'bbox_head.forward'


class RowWise(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
        return (student - teacher).square().sum(1)


class Rowed(nn.Module):
    """A row of logits for each row of inputs; the labels say which is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.bbox_head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str) -> Any:
        logits = self.bbox_head(self.backbone(inputs))
        return dict(loss_cls=(logits.sum(1) * data_samples).sum())


def read_positives(side: Side) -> list[Reading]:
    """Read what a model makes of positives: nothing, where there are none."""
    chosen = side.samples > 0  # type: ignore[operator]
    found = [call.output[chosen] for call in side.of(HEAD)]
    return [Reading(each) for each in found if len(each)]


def weigh_by_labels(side: Side) -> list[Rows]:
    return [Rows(weight=side.samples)]  # type: ignore[arg-type]


def weigh_by_teacher(side: Side) -> list[Rows]:
    return [Rows(norm=call.output.sigmoid().sum()) for call in side.of(HEAD)]


def plan() -> Plan:
    read: Any = outputs_of(HEAD, 'plain').read
    site = partial(Site, seams=(HEAD,), read=read)
    return Plan(
        'toy',
        seams('backbone.forward', HEAD),
        (
            site('weighted', weigh=weigh_by_labels),
            site('counted', weigh=weigh_by_teacher),
            site('plain'),
            Site('positives', (HEAD,), read_positives),
        ),
    )


def distiller() -> Distiller:
    torch.manual_seed(0)
    student = Rowed()
    terms: Any = {site.name: dict(type=RowWise) for site in plan().sites}
    made = Distiller(student, plan(), resolve_terms(student, plan(), terms, None))
    made.teacher = make_teacher(student)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


# labels of eight rows in two iterations: five are the first rank's, three the second's
LABELS = [[1, 0, 1, 0.5, 1, 0, 1, 0], [1, 1, 0, 0, 0.25, 0, 0, 0]]
SHARES = (slice(0, 5), slice(5, 8))


def gradients(rows: slice) -> dict[str, Tensor]:
    """Return the gradient of each term in each iteration, of some rows."""
    one = distiller()
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    one.attach()
    found = {}
    for iteration, labels in enumerate(LABELS):
        batch = dict(inputs=inputs[rows], data_samples=torch.tensor(labels)[rows])
        losses = added(one.student(**batch, mode='loss'))
        for name, loss in losses.items():
            one.student.zero_grad()
            if loss.requires_grad:
                loss.backward(retain_graph=True)
            grads = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in one.student.parameters()
            ]
            found[f'{name} {iteration}'] = torch.cat([g.flatten() for g in grads])
    return found


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    dist.init_process_group('gloo', init_method=store, rank=number, world_size=2)
    # where no term is active, no rank asks another
    assert average._norms({}, {}, {}, torch.zeros(())) == {}
    found = gradients(SHARES[number])
    # as DDP does
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= 2
    torch.save(found, f'{folder}/{number}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def whole_and_shared(tmp_path_factory: Any) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(rank, (str(folder),), nprocs=2)
    shared = [torch.load(folder / f'{i}.pth', weights_only=True) for i in range(2)]
    return [gradients(slice(0, 8)), *shared]


@pytest.mark.parametrize('iteration', [0, 1])
@pytest.mark.parametrize('site', ['weighted', 'counted', 'plain', 'positives'])
def test_the_mean_of_the_gradients_is_that_of_the_whole_batch(
    whole_and_shared: list[dict[str, Tensor]], site: str, iteration: int
) -> None:
    whole, *shared = (found[f'{site} {iteration}'] for found in whole_and_shared)
    assert float(whole.abs().max()) > 0.1
    for found in shared:
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_each_share_alone_would_have_another() -> None:
    whole = gradients(slice(0, 8))
    first, second = (gradients(rows) for rows in SHARES)
    for name in ('weighted 0', 'counted 0', 'plain 0', 'positives 0'):
        mean = (first[name] + second[name]) / 2
        assert float((mean - whole[name]).abs().max()) > 0.01


def test_one_process_asks_no_other() -> None:
    assert average._norms({}, {}, {'plain': ['1x2']}, torch.zeros(())) == {}
