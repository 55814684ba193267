"""Train a detector or a segmentor, self-distilled or not: `mmselfdistill train`.

python tools/train.py mmdet::gfl/gfl_r50_fpn_1x_coco --self-distill generation
"""

from __future__ import annotations

import sys

from mmselfdistill.cli import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]])
