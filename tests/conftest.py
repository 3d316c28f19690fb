"""Where the tests run: on the CPU kernels, or where ``make gpu-test`` says (FASTQ_TEST_DEVICE, FASTQ_BACKEND)."""

import torch
from device import DEVICE

if DEVICE != "cpu":  # here and not in a fixture: test files make tensors as they are imported
    torch.set_default_device(DEVICE)
    # fp32 products are compared with exact ones; TF32 keeps 10 bits of a factor.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
