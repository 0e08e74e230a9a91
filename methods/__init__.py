"""One file per method, read from top to bottom (docs/add-a-method.md).

Imports types, settings and models, at most data's pictures; never a run, a dataset, scoring or another method.
"""
