"""The scenarios that ship with the package: functions of one example, in families; a file is a group of them.

The nineteen image corruptions follow the definitions of Hendrycks and Dietterich (2019), *Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations*, arXiv:1903.12261, for images of any size and any number of
channels.
"""
