"""A simulated CUDA device, with which tests find device mismatches and host synchronisations on a CPU."""
