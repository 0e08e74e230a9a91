"""Sweeps: a sweep file becomes a checked design, an Optuna study, and ordinary runs by one or many workers.

Imports runs and what runs import, and reports for the page at the end; never the command line.
"""
