"""The GPU's kernels in Triton, one noun a file; imported only where a GPU, or a test, asks."""
