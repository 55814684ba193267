"""A config's model with random weights, and noise that it trains on."""

from __future__ import annotations

from typing import Any, Mapping

from mmengine.config import Config

from mmselfdistill.families import find_plan
from mmselfdistill.testing.inputs import raw_batch
from mmselfdistill.testing.models import (
    FEW,
    build,
    calibrate,
    enter,
    prepared,
    sizes_of,
    wants_masks,
)
from mmselfdistill.zoo import check_scope


def step(model: Any, batch: dict[str, Any]) -> None:
    """Make the forward and backward passes of an iteration."""
    losses = model(**batch, mode='loss')
    model.parse_losses(losses)[0].backward()


class Builder:
    """Builds the model of a config with random weights, and batches of noise for it.

    Args:
        cfg (Config): The config. Its framework is entered.
        few (Mapping): The largest value of some keys of the model. Defaults to those
            that cost time and change nothing else.

    Raises:
        ValueError: If the config is of no framework that we know models of, or has no
            model.
    """

    def __init__(self, cfg: Config, few: Mapping[str, int] = FEW) -> None:
        self.zoo = check_scope(cfg)
        model = cfg.get('model')
        if not isinstance(model, dict) or 'type' not in model:
            raise ValueError(f'model: expected a dict with its type, but got {model!r}')
        if cfg.get('data_preprocessor') is not None:
            # as MMEngine's Runner does
            both = {'data_preprocessor': cfg.data_preprocessor, **model}
            model = type(model)(both)
        self.cfg = prepared(model, self.zoo, few)
        self.masks = wants_masks(cfg)
        enter(self.zoo, self.cfg)

    def model(self, size: int) -> Any:
        """Return the model for images of a size, the same one each time."""
        return build(self.zoo, self.cfg, size)

    def raw_batch(self, model: Any, size: int) -> dict[str, Any]:
        """Return two images with labels, as the model's preprocessor takes them."""
        return raw_batch(self.zoo, model, self.cfg, size, self.masks)

    def raw_unlabeled(self, model: Any, size: int) -> dict[str, Any]:
        """Return two images as the preprocessor of what is trained takes them."""
        # of a model that holds the one that it trains, that one takes images
        inner = model.get_submodule(find_plan(model).inner)
        return raw_batch(self.zoo, inner, self.cfg, size, masks=False)

    def batch(self, model: Any, size: int) -> dict[str, Any]:
        """Return two images with labels, as they leave the model's preprocessor.

        Returns:
            dict: ``inputs`` and ``data_samples``, to call the model with.
        """
        return model.data_preprocessor(self.raw_batch(model, size), True)

    def first_size(self) -> int:
        """Return the side of the smallest images on which the model trains.

        A whole training step is made, without self-distillation.

        Raises:
            Exception: What the step said, if the model trains at no size.
        """
        reason: Exception | None = None
        for size in sizes_of(self.cfg):
            try:
                model = self.model(size)
                model.train()
                step(model, self.batch(model, size))
            except Exception as error:
                reason = error
            else:
                return size
        assert reason is not None
        raise reason

    def calibrated(self, size: int) -> tuple[Any, dict[str, Any]]:
        """Return the model, its norms moved towards the batch's statistics, and it."""
        model = self.model(size)
        batch = self.batch(model, size)
        calibrate(model, batch)
        return model, batch
