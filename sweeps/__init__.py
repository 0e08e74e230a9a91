"""One TOML file per question (docs/add-a-sweep.md).

Data alone: it imports nothing.
"""
