"""Adapters through which other programs run a model with patterns."""
