"""The request log: a folder of Parquet files with a sample of the images that a service has classified.

    FOLDER/requests-TIME-PROCESS-RANDOM.parquet   one row per image: `schema.REQUESTS`
    FOLDER/feedback-TIME-PROCESS-RANDOM.parquet   one row per label: `schema.FEEDBACK`
    FOLDER/erased.json                            ids whose rows must not be written any more: `files.erase`

The service writes it (`serving.engine.request_log`), training and benchmarks read it (`read.read_log`). A file is
complete or absent: `distillery.files`. The modules need pyarrow: import them only where there is a log.
"""

from distillery.errors import DistilleryError


class RequestLogError(DistilleryError):
    """A request log that is missing, damaged or empty, or a program without pyarrow."""
