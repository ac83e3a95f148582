"""Text in and out: templates, tokens, stop strings, data sets; no torch, no transformers."""
