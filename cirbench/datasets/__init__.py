"""One file per dataset: its facts as a value, its knobs, and one load function (docs/add-a-dataset.md).

Imports types, settings, seeds and numerics, and data's reading, picture files and caches; never a model or a run.
"""
