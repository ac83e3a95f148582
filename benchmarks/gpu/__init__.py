"""Everything that is measured on one card, part by part: see `__main__`."""
