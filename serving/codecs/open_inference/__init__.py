"""The Open Inference Protocol (KServe V2): `rest` is the codec over HTTP, `grpc` the codec over gRPC.

Includes Triton's extensions for binary tensors and classification.
"""
