"""Measurements; they record and never judge. Every ratio comes from one run on one machine."""
