"""CLIP, CNN and LSTM encoders, layers that several methods share, the small CLIPs that ship, weights from anywhere.

Imports the package's root and data's pictures; never a dataset, a run or a method.
"""
