"""cirbench: the reference benchmark and ablation suite for composed image retrieval."""

__version__ = "0.1.0"
