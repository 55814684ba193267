"""Co-DETR is no part of MMDetection: a relative is built of the parts of DINO."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import added
from mmdet.models.dense_heads import DINOHead
from torch import Tensor, nn

from mmselfdistill.core.build import build_distiller
from mmselfdistill.core.comparison import Batch
from mmselfdistill.core.distiller import Distiller
from mmselfdistill.core.recorder import record
from mmselfdistill.core.teacher import make_teacher, still
from mmselfdistill.testing import check_identity
from mmselfdistill.testing.builder import Builder
from mmselfdistill.testing.identity import disturb
from mmselfdistill.testing.losses import loss_of
from mmselfdistill.zoo import read_config

CONFIG = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
DECODER = 'query_head.transformer.decoder.forward'


class QueryHead(DINOHead):
    """DINO's head, with its encoder, choice of queries and decoder inside."""

    def forward(self, feats: Any, samples: Any, noise: Any) -> tuple[Tensor, ...]:
        dino: Any = self.transformer
        encoder_inputs, decoder_inputs = dino.pre_transformer(feats, samples)
        encoded = dino.forward_encoder(**encoder_inputs)
        memory = encoded['memory']
        proposed, places = dino.gen_encoder_output_proposals(
            memory, encoded['memory_mask'], encoded['spatial_shapes']
        )
        scores = self.cls_branches[-1](proposed)
        boxes = self.reg_branches[-1](proposed) + places
        best = scores.amax(2).topk(self.num_query, 1).indices[..., None]
        boxes = boxes.gather(1, best.expand(-1, -1, 4))
        labels, noisy_boxes, mask, _ = noise
        learned = dino.query_embedding.weight.expand(len(memory), -1, -1)
        decoder_inputs.pop('memory_mask')
        hidden, references = dino.decoder(
            query=torch.cat([labels, learned], 1),
            value=memory,
            key_padding_mask=encoded['memory_mask'],
            self_attn_mask=mask,
            reference_points=torch.cat([noisy_boxes, boxes.detach()], 1).sigmoid(),
            reg_branches=self.reg_branches,
            **decoder_inputs,
        )
        chosen = scores.gather(1, best.expand(-1, -1, scores.shape[2]))
        return (*super().forward(hidden, references), chosen, boxes.sigmoid(), memory)

    def loss(self, feats: Any, samples: Any) -> dict[str, Tensor]:
        noise = self.transformer.dn_query_generator(samples)
        *outputs, memory = self(feats, samples, noise)
        instances = [sample.gt_instances for sample in samples]
        metas = [sample.metainfo for sample in samples]
        losses: dict[str, Tensor] = self.loss_by_feat(
            *outputs, instances, metas, noise[-1]
        )
        # queries of the other heads: they go through the same decoder
        query = memory[:, :5]
        inputs = self.transformer.pre_transformer(feats, samples)[1]
        hidden, _ = self.transformer.decoder(
            query=query,
            value=memory,
            key_padding_mask=inputs.pop('memory_mask'),
            self_attn_mask=None,
            reference_points=query.new_full((*query.shape[:2], 4), 0.5),
            reg_branches=self.reg_branches,
            **inputs,
        )
        return {**losses, 'loss_beside': hidden[-1].square().mean()}


class Collaborative(nn.Module):
    """A detector whose ``query_head`` holds what DINO itself holds."""

    def __init__(self, cfg: Any, dino: Any) -> None:
        super().__init__()
        self.backbone, self.neck = dino.backbone, dino.neck
        self.parse_losses = dino.parse_losses
        del dino.backbone, dino.neck, dino.bbox_head
        self.query_head = QueryHead(**cfg)
        self.query_head.transformer = dino
        self.query_head.num_query = dino.num_queries
        self.bbox_head = nn.ModuleList([nn.Conv2d(1, 1, 1)])

    def extract_feat(self, images: Tensor) -> Any:
        return self.neck(self.backbone(images))

    def forward(self, inputs: Tensor, data_samples: Any, mode: str) -> Any:
        return self.query_head.loss(self.extract_feat(inputs), data_samples)


@pytest.fixture(scope='module')
def trained() -> tuple[Distiller, dict[str, Any]]:
    whole = read_config(CONFIG, None)
    whole.model.encoder.num_layers = whole.model.decoder.num_layers = 2
    builder = Builder(whole)
    cfg, dino = builder.cfg, builder.model(64)
    batch = builder.batch(dino, 64)
    head = {k: v for k, v in cfg.bbox_head.items() if k != 'type'}
    shared = dict(share_pred_layer=False, num_pred_layer=3, as_two_stage=True)
    model = Collaborative(dict(**head, **shared, train_cfg=cfg.train_cfg), dino)
    model.query_head.init_weights()
    still(model)
    distiller = build_distiller(model)
    distiller.teacher = make_teacher(model)
    return distiller, batch


def test_the_teachers_decoder_is_given_the_students_queries(trained: Any) -> None:
    distiller, batch = trained
    student = distiller.student
    teacher: Any = make_teacher(student)
    disturb(teacher)
    with record(student, distiller.labeled.plan.seams) as calls:
        loss_of(student, batch)
    sides = distiller.labeled.sides(
        teacher, distiller.terms, calls, Batch(batch['data_samples'])
    )
    order = [('extract_feat', 0), ('query_head.forward', 0), (DECODER, 1)]
    # the call for the other heads is not repeated
    assert [(call.path, call.depth) for call in calls] == [*order, (DECODER, 0)]
    for side in sides:
        assert [(call.path, call.depth) for call in side.calls] == order
    ours, theirs = (side.calls[2].kwargs for side in sides)
    assert torch.equal(theirs['query'], ours['query'])
    assert torch.equal(theirs['reference_points'], ours['reference_points'])
    # the rest is the teacher's: it would have chosen other queries
    assert not torch.equal(theirs['value'], ours['value'])
    assert theirs['reg_branches'] is teacher.query_head.reg_branches
    chosen = [side.calls[1].output[3] for side in sides]
    assert not torch.equal(*chosen)


def test_terms_are_of_the_matching_queries_and_zero_at_equal_weights(
    trained: Any,
) -> None:
    distiller, batch = trained
    assert distiller.labeled.plan.name == 'collaborative query detector'
    assert 'bbox_head' in distiller.labeled.plan.skipped
    report = check_identity(distiller.student, batch)
    assert report.problems == []
    queries, classes = 2 * 50, 80
    assert report.terms['logits'].tensors == [f'{queries}x{classes}']
    assert report.terms['boxes'].tensors == [f'{queries}x4'] * 2
    assert report.terms.keys() == {'features', 'logits', 'boxes'}
    for name, check in report.terms.items():
        assert check.equal <= 1e-6 * check.apart, name
    assert report.silent == ['bbox_head']


def test_every_part_of_the_query_head_moves_a_term(trained: Any) -> None:
    distiller, batch = trained
    student, head = distiller.student, distiller.teacher.query_head
    distiller.attach()
    equal = added(loss_of(student, batch))['logits']
    for part in (
        head.transformer.encoder,
        head.transformer.decoder,
        head.cls_branches[1],
    ):
        saved = {k: v.clone() for k, v in part.state_dict().items()}
        disturb(part)
        assert added(loss_of(student, batch))['logits'] > equal + 1e-6
        part.load_state_dict(saved)
    distiller.detach()
