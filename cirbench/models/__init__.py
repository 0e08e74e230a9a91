"""CLIP, CNN and LSTM encoders, layers that several methods share, the packaged small CLIPs, weights from other sources.

Imports the package's root and data's pictures; never a dataset, a run or a method.
"""
