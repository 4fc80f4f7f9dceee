"""Attention on the CPU: gathers the kept blocks of keys, forward and backward, in time and memory linear in the tokens."""

from .schedule import PatternSchedule, assignments
from .selected_attention import selected_attention
from .tile_attention import tile_attention
from .tiles import Assignment

__all__ = ["Assignment", "PatternSchedule", "assignments", "selected_attention", "tile_attention"]
