"""From embeddings or ranked lists to numbers: ranking, metrics, what a protocol means, statistics, server files.

Imports the package's root and data; never a model, a run or a dataset file.
"""
