"""Quantise fp32 ONNX files to int8, and convert them to half precision."""
