"""From image ids and texts to model inputs: files on disk, checks, decoding, caches, batches.

Imports modules of the package's root (types, settings, seeds, lease, numerics, plugins) and nothing else of cirbench.
"""
