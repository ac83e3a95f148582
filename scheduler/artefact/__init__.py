"""Adapters that come from outside, judged by their bytes alone: no tensor library, no pickle."""
