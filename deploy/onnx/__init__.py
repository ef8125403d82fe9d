"""ONNX files without torch: their bytes, their properties, their operator sets."""
