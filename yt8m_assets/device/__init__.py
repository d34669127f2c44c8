"""What is computed on: the GPUs, their memory, the compiler."""
