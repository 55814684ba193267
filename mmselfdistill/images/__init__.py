"""Images without labels: where they are, and how they are loaded."""

from .find import find_images, frames_of
from .loader import Batches
from .pipeline import PipelineError, image_pipeline

__all__ = ['Batches', 'PipelineError', 'find_images', 'frames_of', 'image_pipeline']
