"""The Open Inference Protocol over gRPC; wants the extra `grpc`. Imported in API processes only, but for `port`."""
