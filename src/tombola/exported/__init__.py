"""Networks in the formats of other tools: ONNX and torch.export."""
