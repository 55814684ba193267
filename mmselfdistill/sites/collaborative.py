"""Detectors of queries that other detectors' heads help to train."""

from __future__ import annotations

from torch import nn

from .family import unread_heads
from .query import QueryDetector


class CollaborativeDetector(QueryDetector):
    """A Co-DETR (arXiv 2211.12860): a ``query_head`` with a transformer in it.

    The head chooses its queries inside of one call, from what its encoder returned.
    The teacher repeats that call, with the student's queries for its decoder. Sites
    and default losses are those of :class:`QueryDetector`.
    """

    name = 'collaborative query detector'
    path = 'query_head'

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Say whether a ``query_head`` predicts after each layer of its decoder."""
        transformer = getattr(getattr(model, cls.path, None), 'transformer', None)
        return super().matches(model) and hasattr(transformer, 'decoder')

    def seams(self) -> list[str]:
        """Return the features and the whole ``query_head``."""
        return [self.features, f'{self.path}.forward']

    def kept(self) -> dict[str, tuple[str, ...]]:
        """Return the decoder's queries, and the boxes at which they begin."""
        decoder = f'{self.path}.transformer.decoder.forward'
        return {decoder: ('query', 'reference_points')}

    def skipped(self) -> dict[str, str]:
        """Return the predictions that are not compared, and the heads beside."""
        beside = unread_heads(self.model, [self.path])
        why = 'it helps in training, on the labels alone'
        return {**super().skipped(), **dict.fromkeys(beside, why)}

    def queries(self) -> int:
        """Return the number of matching queries."""
        return int(self.head.num_query)
