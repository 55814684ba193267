"""Co-DETR is no part of MMDetection: a relative is built of the parts of DINO."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import DINOHead
from mmengine.config import Config
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / 'tools'))
from launching import zoo_folder
from zoo_check import disturb, leaves, loss_of, ours, silent_parts
from zoo_inputs import make_batch
from zoo_models import build, enter, prepared

from mmselfdistill.distiller import Distiller, build_distiller
from mmselfdistill.replay import record, replay
from mmselfdistill.teacher import make_teacher, still

CONFIG = 'dino/dino-4scale_r50_8xb2-12e_coco.py'
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
        # queries of the heads beside: they go through the same decoder
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
    root = zoo_folder('mmdet')
    cfg = prepared(Config.fromfile(root / CONFIG).model, root)
    cfg.encoder.num_layers = cfg.decoder.num_layers = 2
    enter('mmdet', cfg)
    dino = build('mmdet', cfg, 64)
    batch = make_batch('mmdet', dino, cfg, 64, False)
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
    teacher = copy.deepcopy(distiller.teacher)
    disturb(teacher)
    family = distiller.family
    with record(distiller.student, distiller.seams) as calls:
        loss_of(distiller.student, batch)
    made = replay(teacher, calls, distiller.seams, kept=family.kept())
    order = [
        ('extract_feat', 0),
        ('query_head.forward', 0),
        (DECODER, 1),
        (DECODER, 0),
    ]
    assert [(call.path, call.depth) for call in calls] == order
    assert [(call.path, call.depth) for call in made] == order
    student, own = calls[2].kwargs, made[2].kwargs
    assert torch.equal(own['query'], student['query'])
    assert torch.equal(own['reference_points'], student['reference_points'])
    # the rest is the teacher's: it would have chosen other queries
    assert not torch.equal(own['value'], student['value'])
    assert own['reg_branches'] is teacher.query_head.reg_branches
    assert not torch.equal(made[1].output[3], calls[1].output[3])
    # the call for the heads beside was not repeated
    assert made[3].output is None


def test_terms_are_of_the_matching_queries_and_zero_at_equal_weights(
    trained: Any,
) -> None:
    distiller, batch = trained
    assert distiller.family.name == 'collaborative query detector'
    assert 'bbox_head' in distiller.family.skipped()
    plain = list(leaves(loss_of(distiller.student, batch)))
    distiller.attach()
    losses = loss_of(distiller.student, batch)
    queries, classes = 2 * 50, 80
    assert distiller.shapes['logits'] == [f'{queries}x{classes}']
    assert distiller.shapes['boxes'] == [f'{queries}x4'] * 2
    terms = ours(losses)
    assert set(terms) == {'features', 'logits', 'boxes'}
    saved = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    disturb(distiller.teacher)
    apart = ours(loss_of(distiller.student, batch))
    distiller.teacher.load_state_dict(saved)
    distiller.detach()
    for name, value in terms.items():
        assert abs(value) <= 1e-6 * apart[name], name
    stock = [v for k, v in losses.items() if not k.startswith('loss_sd_')]
    assert all(map(torch.equal, plain, leaves(dict(enumerate(stock)))))


def test_every_part_of_the_query_head_moves_a_term(trained: Any) -> None:
    distiller, batch = trained
    distiller.attach()
    equal = ours(loss_of(distiller.student, batch))['logits']
    head = distiller.teacher.query_head
    for part in (
        head.transformer.encoder,
        head.transformer.decoder,
        head.cls_branches[1],
    ):
        saved = {k: v.clone() for k, v in part.state_dict().items()}
        disturb(part)
        assert ours(loss_of(distiller.student, batch))['logits'] > equal + 1e-6
        part.load_state_dict(saved)
    distiller.detach()
    assert silent_parts(distiller, batch) == ['bbox_head']
