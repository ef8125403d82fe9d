"""Read and write ONNX files without torch: their bytes, their metadata, their operator sets."""
