"""Is a model distilled correctly? What tests, the sweep of the zoos and users run."""

from .identity import Check, Report, check_identity

__all__ = ['Check', 'Report', 'check_identity']
