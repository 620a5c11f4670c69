"""Server reflection: tools such as grpcurl learn the methods and messages from the server.

The messages of `open_inference.proto` are in a package of their own, because a process holds each full name once. Here
they get the names that clients use, in a separate pool.
"""

from collections.abc import Collection

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection import SERVICE_NAME
from grpc_reflection.v1alpha.reflection import aio as reflection

from serving.codecs.open_inference import open_inference_pb2

_INTERNAL = "ModelInferTarget"


def reflection_servicer(service: str, methods: Collection[str]) -> reflection.ReflectionServicer:
    """Return the servicer that describes `service` and the health service.

    The messages of each of the `methods` are named after it, as gRPC's style guide has it.
    """
    package, _, name = service.rpartition(".")
    file = FileDescriptorProto.FromString(open_inference_pb2.DESCRIPTOR.serialized_pb)
    prefix, file.package = f".{file.package}.", package
    del file.message_type[[message.name for message in file.message_type].index(_INTERNAL)]
    for message in file.message_type:
        _rename(message, prefix, f".{package}.")
    described = file.service.add(name=name)
    for method in methods:
        described.method.add(
            name=method,
            input_type=f".{package}.{method}Request",
            output_type=f".{package}.{method}Response",
        )
    pool = DescriptorPool()
    pool.Add(file)
    pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    return reflection.ReflectionServicer((service, "grpc.health.v1.Health", SERVICE_NAME), pool)


def _rename(message: DescriptorProto, prefix: str, replacement: str) -> None:
    for field in message.field:
        if field.type_name.startswith(prefix):
            field.type_name = replacement + field.type_name.removeprefix(prefix)
    for nested in message.nested_type:
        _rename(nested, prefix, replacement)
