"""The Open Inference Protocol over gRPC; requires the extra `grpc`. Only `port` is imported before the fork."""
