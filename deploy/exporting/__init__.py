"""Export torch modules to ONNX; this folder needs torch, which each function imports when it runs."""
