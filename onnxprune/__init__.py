"""onnxprune: structural pruning of ONNX models, after training and before deployment."""
