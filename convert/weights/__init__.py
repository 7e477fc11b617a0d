"""One block's attention as tensors, and what it computes."""
