"""The loss of a term: from its settings to a module."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Mapping

from mmengine.registry import MODELS
from torch import nn
from torch.nn.parameter import is_lazy

import mmselfdistill.losses
from mmselfdistill.core.streams import forked_rng
from mmselfdistill.errors import nearest

LOSSES = [name for name in mmselfdistill.losses.__all__ if name.endswith('Loss')]
# what a term has besides its loss's own arguments
TERM_KEYS = ('type', 'site', 'weight', 'schedule', 'on')


def build_loss(where: str, cfg: Mapping[str, Any]) -> nn.Module:
    """Build the loss of a term.

    Args:
        where (str): What the term is called where the user wrote it.
        cfg (Mapping): All that the term has.

    Raises:
        ValueError: If the loss is unknown, or an argument of it is wrong.
    """
    given = cfg['type']
    cls = find_loss(given)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f'{where}.type: unknown loss {given!r}; {_why_unknown(given)}')
    arguments = {key: value for key, value in cfg.items() if key not in TERM_KEYS}
    # a module's own signature takes anything, and then refuses it
    takes_none = cls.__init__ is nn.Module.__init__
    parameters = {} if takes_none else inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in parameters and not takes_any:
            valid = nearest(key, [*parameters, *TERM_KEYS])
            raise ValueError(
                f'{where}: {cls.__name__} has no argument {key!r}; {valid}'
            )
    try:
        # the student's own first weights are drawn next: they have to be a plain run's
        with forked_rng():
            loss: nn.Module = MODELS.build(dict(type=cls, **arguments))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'{where}: {error}') from error
    if '_modules' not in vars(loss):
        raise ValueError(
            f'{where}.type: the __init__ of {given} calls no super().__init__()'
        )
    tensors = [*loss.named_parameters(), *loss.named_buffers()]
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise ValueError(
            f'{where}.type: {lazy!r} of {given} has no size before the first call: no '
            'other process, resumed run or next generation could be given it. Give '
            'its size, as nn.Linear(256, 64) in place of nn.LazyLinear(64)'
        )
    takes = inspect.signature(loss.forward).parameters
    if 'kind' not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f'{where}.type: {given} is not called as loss(student, teacher, kind=...): '
            f'its forward takes no such keyword. Valid: {LOSSES}, or a loss of your '
            'own that does'
        )
    return loss


def find_loss(kind: Any) -> Any:
    """Return the class of a name or a dotted path, or None; a class is its own."""
    if not isinstance(kind, str):
        return kind
    try:
        return MODELS.get(kind)
    except Exception:
        # a module of the user's that fails: it is imported again, to say why
        return None


def _why_unknown(kind: object) -> str:
    if not isinstance(kind, str):
        return 'it is neither a name nor a class of losses'
    module, _, name = kind.rpartition('.')
    if not module:
        return f"{nearest(name, LOSSES)}, or one of your own, as 'my_module.MyLoss'"
    try:
        found = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        path = '. Is its folder in PYTHONPATH?' if missing in _parents(module) else ''
        return f'{module!r} is not imported: {type(error).__name__}: {error}{path}'
    if hasattr(found, name):
        return f'{name!r} of {module!r} is no torch.nn.Module'
    classes = [k for k, v in vars(found).items() if isinstance(v, type)]
    losses = [k for k in classes if issubclass(vars(found)[k], nn.Module)]
    close = nearest(name, losses) if losses else f'valid: {LOSSES}'
    return f'{module!r} has no such loss; {close}'


def _parents(module: str) -> list[str]:
    parts = module.split('.')
    return ['.'.join(parts[: n + 1]) for n in range(len(parts))]
