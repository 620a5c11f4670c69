"""The Open Inference Protocol (KServe V2) over REST. `protocol` is the way in; over gRPC it is in `serving.grpc`.

With Triton's extensions for binary tensors, classification, model configuration and statistics.
"""
