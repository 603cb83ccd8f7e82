"""Flax classifiers that return ``(logits, {stage: activation})``, and their weight files."""
