"""TensorRT and TensorRT-RTX: engines built and run."""
