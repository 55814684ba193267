from __future__ import annotations

import torch

# Several threads on busy cores wait for each other longer than they compute.
torch.set_num_threads(1)
