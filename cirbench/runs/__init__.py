"""One run: its plan, its identity, training, the record it leaves, and what is done with a record later.

Imports scoring, models, data and the package's root; never a sweep, a report or the command line.
"""
