"""The versions we run on, errors of the device, and the checkpoints of MMEngine."""

from __future__ import annotations

import functools
import importlib.util
import sys
import zipfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterator

import mmengine
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import digit_version

# what a device raises by itself, through no fault of the model; since PyTorch 2.8 two
DEVICE_ERRORS = (
    torch.cuda.OutOfMemoryError,
    getattr(torch, 'AcceleratorError', torch.cuda.OutOfMemoryError),
)
# classes of which a checkpoint of MMEngine's names methods, and these
_WITH_METHODS: dict[type, tuple[str, ...]] = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def check_versions() -> None:
    """Raise if Python, PyTorch or MMEngine is older than we run on.

    Raises:
        ImportError: If one is too old.
    """
    found = {
        'Python': ('.'.join(map(str, sys.version_info[:3])), '3.8'),
        'PyTorch': (torch.__version__, '2.1'),
        'mmengine': (mmengine.__version__, '0.10'),
    }
    for name, (version, least) in found.items():
        if digit_version(version) < digit_version(least):
            raise ImportError(
                f'mmselfdistill needs {name} >= {least}, but {version} is installed'
            )


def allow_mmengine_checkpoints() -> None:
    """Let PyTorch >= 2.6 load the types that MMEngine writes into checkpoints.

    ``torch.load`` refuses what it does not know. The types allowed here hold
    numbers and arrays only. The file also names ``getattr``, for the methods of
    ``HistoryBuffer`` and of ``OneCycleLR``: see :func:`mmengine_checkpoints`, in which
    MMEngine's own loaders run from now on.
    """
    if not _is_strict():
        return
    # numpy 2 renamed the module; the old name may be gone
    core = np._core if hasattr(np, '_core') else np.core
    scalars = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    dtypes = {type(np.dtype(scalar)) for scalar in scalars}
    torch.serialization.add_safe_globals(
        [
            # by name: OneDL's MMEngine takes the types it allows itself away again
            *(
                (kind, f'{kind.__module__}.{kind.__name__}')
                for kind in (*_WITH_METHODS, np.ndarray, np.dtype, *dtypes)
            ),
            # files of either numpy are met
            *_both_names(core.multiarray._reconstruct, '_reconstruct'),
            *_both_names(core.multiarray.scalar, 'scalar'),
        ]
    )
    # local files, URLs, object stores and model zoos
    for prefix, load in list(CheckpointLoader._schemes.items()):
        if load.__module__ != __name__:
            CheckpointLoader.register_scheme(prefix, _guarded(load), force=True)


def _is_strict() -> bool:
    """Whether this PyTorch takes a list of the types that a file may hold."""
    return digit_version(torch.__version__) >= digit_version('2.6')


@contextmanager
def mmengine_checkpoints() -> Iterator[None]:
    """Let ``torch.load`` look up the few methods that MMEngine writes.

    A checkpoint names ``getattr`` for them, which could look up anything. It is given
    a function that looks up nothing else, and only while a checkpoint is loaded. What
    else a file asks for, PyTorch refuses with ``pickle.UnpicklingError``.

    Examples:
        >>> with mmengine_checkpoints():
        ...     checkpoint = torch.load('epoch_12.pth', map_location='cpu')
    """
    guard: Any = (_method_of_mmengine, 'builtins.getattr')
    # at its end a block inside another would take away what that one allows
    if not _is_strict() or guard in torch.serialization.get_safe_globals():
        yield
        return
    with torch.serialization.safe_globals([guard]):
        yield


def load_checkpoint(path: Path | str) -> Any:
    """Return what a file of MMEngine's holds, on the CPU.

    From PyTorch 2.6 on, a file can run nothing: an older one does not know which
    types to allow, and loads it as MMEngine itself does there.

    Args:
        path (Path | str): A local file.
    """
    with mmengine_checkpoints():
        return torch.load(path, map_location='cpu', weights_only=_is_strict())


def why_unreadable(path: Path | str, error: Exception) -> str:
    """Say why a file was not loaded: of any, PyTorch says only that one may trust it.

    Args:
        path (Path | str): A local file, or a URL.
        error (Exception): What loading it raised.
    """
    file = Path(path)
    if file.is_dir():
        return 'it is a folder: name a file in it'
    if file.is_file():
        with file.open('rb') as opened:
            start = opened.read(8)
        if not start:
            return 'the file is empty'
        if start.startswith(b'PK') and not zipfile.is_zipfile(file):
            return 'its end is missing: it was cut off'
        # an archive, or a pickle: the form before PyTorch 1.6
        if not start.startswith((b'PK\x03\x04', b'\x80')):
            return f'torch.save did not write it: it begins with {start!r}'
    return f'{type(error).__name__}: {error}'


def _guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    # our module's name stays: by it a loader is not guarded twice
    @functools.wraps(load, assigned=('__name__', '__doc__'))
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with mmengine_checkpoints():
            return load(*args, **kwargs)

    return guarded


def _both_names(function: Callable[..., Any], name: str) -> list[Any]:
    modules = ('numpy.core.multiarray', 'numpy._core.multiarray')
    return [(function, f'{module}.{name}') for module in modules]


def _method_of_mmengine(owner: Any, name: str) -> Any:
    for kind, names in _WITH_METHODS.items():
        if owner is kind and name in names:
            return getattr(kind, name)
    raise AttributeError(
        f'A checkpoint asks for {name!r} of {owner!r}: only the statistics of '
        "MMEngine's HistoryBuffer and the curves of its OneCycleLR are allowed"
    )


def name_our_configs() -> None:
    """Make ``mmselfdistill::...`` a config, and ``mmseg::...`` with OneDL's too.

    MMEngine finds a package's configs by the name of its distribution.
    """
    packages = config_utils.MODULE2PACKAGE
    # looked up as a module of that name: an editable install's distribution is not
    # where the package is
    packages['mmselfdistill'] = 'mmselfdistill.version'
    stock = Config._get_cfg_path
    if stock.__module__ == __name__:
        return

    def without_our_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = stock(cfg_path, filename)
        # our configs name the frameworks' classes: MMEngine would look for them here
        return path, None if scope == 'mmselfdistill' else scope

    Config._get_cfg_path = staticmethod(without_our_scope)
    if importlib.util.find_spec('mmseg') is None:
        return
    try:
        # MMEngine's own look-up imports pkg_resources, which warns
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        packages['mmseg'] = 'onedl-mmsegmentation'
