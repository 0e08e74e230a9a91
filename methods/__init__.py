"""One file per method, read from top to bottom (docs/add-a-method.md).

Imports types, settings and models, data's pictures at most; never a run, a dataset, scoring or another method.
"""
