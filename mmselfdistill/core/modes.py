"""What is random or keeps statistics in training, and how it is turned off."""

from __future__ import annotations

import re

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.spectral_norm import SpectralNorm

# they draw numbers or keep statistics in training, and are no norms of PyTorch's
_OTHERS = ('EMAModule', 'RReLU', '_SpectralNorm')

# what the frameworks, timm and transformers call a rate that is no module
_RATE = re.compile(
    r'((attn|attention|attention_probs|proj|pos|patch|path|act|activation|ffn|hidden|'
    r'head|feat|final|embed|embd|resid|classifier|encoder|decoder)_)?'
    r'(drop|pdrop|dropout|drop_path|layer_?drop|stochastic_depth)'
    r'(_(p|prob|rate|ratio))?'
)


def still(model: nn.Module) -> None:
    """Put a model in training mode, less all that is random or keeps statistics.

    Evaluation mode is set for batch and instance norms, for dropout of every
    kind, for ``RReLU``, which in training draws its slope, for mmcv's own
    ``SyncBatchNorm``, for spectral norms, which in training update their vectors,
    and for mmseg's ``EMAModule``, which in training updates its bases. A dropout
    rate that a module holds as a number is set to 0, if it has a usual name.
    """
    model.train()
    for module in model.modules():
        dropout = is_dropout(module)
        if dropout or keeps_statistics(module):
            module.training = False
        # timm's attention reads the rate of a dropout that it does not call
        for name, value in list(vars(module).items()):
            if holds_rate(name, value) or (dropout and name == 'p' and _is_real(value)):
                setattr(module, name, 0.0)


def use_batch_statistics(teacher: nn.Module, student: nn.Module) -> None:
    """Let batch norms that train in the student go by the batch in its teacher too.

    The teacher's running statistics stay as they are. An average of fast weights, and
    its running statistics, do not fit each other.

    Args:
        teacher (nn.Module): A copy of the student.
        student (nn.Module): In the mode in which it trains.
    """
    ours = dict(student.named_modules())
    for path, norm in teacher.named_modules():
        # of others, the flag does not keep the statistics still
        if isinstance(norm, _BatchNorm) and path in ours:
            norm.training = ours[path].training
            norm.track_running_stats = False


def has_batch_norms_that_train(student: nn.Module) -> bool:
    """Say whether a batch norm normalises by the batch."""
    modules = student.modules()
    return any(isinstance(each, _BatchNorm) and each.training for each in modules)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm that may keep running statistics."""
    return isinstance(module, _NormBase) or type(module).__name__ == 'SyncBatchNorm'


def holds_rate(name: str, value: object) -> bool:
    """Say whether an attribute is a rate of dropout: a number, of any library."""
    return _is_real(value) and _RATE.fullmatch(name) is not None


def _is_real(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point()
    return isinstance(value, (float, np.floating))


def is_dropout(module: nn.Module) -> bool:
    """Say whether a module drops out, and does nothing else."""
    name = type(module).__name__.lower()
    # torchvision's StochasticDepth has a name of its own
    known = 'drop' in name or name == 'stochasticdepth'
    named = known and not any(module.children())
    return isinstance(module, _DropoutNd) or named


def keeps_statistics(module: nn.Module) -> bool:
    """Say whether a module changes its buffers while it trains."""
    hooks = module._forward_pre_hooks.values()
    spectral = any(isinstance(hook, SpectralNorm) for hook in hooks)
    return is_norm(module) or spectral or type(module).__name__ in _OTHERS


def draws(module: nn.Module) -> bool:
    """Say whether a module may draw random numbers in a forward pass."""
    rate = getattr(module, 'p', getattr(module, 'drop_prob', None))
    dropout = is_dropout(module) and rate != 0
    rates = [v for name, v in vars(module).items() if holds_rate(name, v)]
    return module.training and (dropout or any(rates))
