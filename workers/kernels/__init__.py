"""Tensor operations with one meaning each; `reference.py` is their specification."""
