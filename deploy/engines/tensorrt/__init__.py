"""Build and run engines of TensorRT and TensorRT-RTX."""
