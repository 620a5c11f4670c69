"""The model repository on disk, and an onnxruntime session for each model of it."""
