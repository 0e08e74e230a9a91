"""What becomes of an image id or a text before a model sees it: files on disk, checks, decoding, caches, batches.

Imports the words of the package's root (types, settings, seeds, lease, numerics, plugins) and nothing else of cirbench.
"""
