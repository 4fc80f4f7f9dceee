"""GPU kernels in Triton, one folder an operation; loaded only when a GPU (or Triton's interpreter) is asked for."""
