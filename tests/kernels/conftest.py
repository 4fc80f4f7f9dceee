"""Without a GPU the kernels run in Triton's interpreter, on CPU tensors and small shapes."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
