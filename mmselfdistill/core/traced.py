"""What is computed of an image outside of all recorded calls."""

from __future__ import annotations

from typing import Any, Callable, Sequence

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmselfdistill.containers import tensors_in
from mmselfdistill.core.memory import share_memory

# they ask for a shape, a dtype or a device alone
_NEW = ('new_', 'zeros_like', 'ones_like', 'empty_like', 'full_like', 'rand')


class Traced(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows some images through every operation, with or without gradient.

    Args:
        images (Sequence[Tensor]): The images.
        outside (Callable): Says whether no recorded call is being made.

    Attributes:
        made (list[Tensor]): What was computed of them, outside.
        changed (list[str]): Operations that changed one in place, outside.
    """

    def __init__(self, images: Sequence[Tensor], outside: Callable[[], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._images = [each.detach() for each in images]
        self._outside = outside
        self.made: list[Tensor] = []
        self.changed: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make an operation, and note what it makes of an image."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not self._outside() or name.startswith(_NEW):
            return output
        given = tensors_in((args, kwargs))
        if any(self.is_image(each) or self.is_made(each) for each in given):
            if name.endswith('_') and self.is_image(args[0]):
                self.changed.append(name)
            new = [t for t in tensors_in(output) if not self.is_image(t)]
            self.made += [each for each in new if not self.is_made(each)]
        return output

    def is_image(self, tensor: Tensor) -> bool:
        """Say whether a tensor is one of the images, or a part of one."""
        return any(share_memory(tensor, each) for each in self._images)

    def is_made(self, tensor: Tensor) -> bool:
        """Say whether a tensor was computed of an image, outside of all calls."""
        return any(share_memory(tensor, each) for each in self.made)
