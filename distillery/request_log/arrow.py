"""pyarrow, or the command that installs it."""

from distillery.request_log import RequestLogError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    raise RequestLogError("a request log needs pyarrow: pip install '.[scoring]'") from None

__all__ = ["pa", "pc", "pq"]
