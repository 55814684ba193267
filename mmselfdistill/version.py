"""Version of the package."""

import hashlib
from pathlib import Path

__version__ = '0.1.0'


def source_hash() -> str:
    """Return a hash of the package's source: what was measured depends on it.

    The command line is left out: it reads and prints what others computed.
    """
    root = Path(__file__).resolve().parent
    found = hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        # `.mim` links to configs and tools, where the package was installed
        if not {'.mim', 'commands'} & {*path.relative_to(root).parts}:
            found.update(path.read_bytes())
    return found.hexdigest()
