"""Clients of the service, synchronous and asynchronous (`pip install '.[client]'`).

    from serving.client import AsyncClient, Client

    with Client("http://127.0.0.1:8000") as client:
        predictions = client.predict(images)              # uint8 [N, 28, 28]: ink 0–255 on background 0
        print(predictions.digits, predictions.probabilities, predictions.model, predictions.timing.total_ms)
        client.predict(images, model="teacher")
        client.predict_pictures([Path("digit.png").read_bytes()])
        client.feedback(predictions, true_digits)         # for the live accuracy of the model

    async with AsyncClient("http://127.0.0.1:8000", api_key="…") as client:
        predictions = await asyncio.gather(*(client.predict(image) for image in images))

Images are sent as binary tensors of the Open Inference Protocol: 784 bytes each, where JSON takes two to three
thousand. More images than fit one request are sent in several, one after the other: a prediction does not depend on
the other images of its request.

One client serves many threads, or many tasks of one event loop, and keeps its connections. Retries and their safety
are described in `serving.client.retries`, errors in `serving.client.errors`. The package imports nothing that only the
service needs.
"""

try:
    import httpx  # noqa: F401 - the one requirement besides numpy
except ModuleNotFoundError:
    raise ModuleNotFoundError("serving.client needs httpx: pip install '.[client]'") from None

from serving.client.client import AsyncClient, Client
from serving.client.messages import Feedback, Predictions, Timing

__all__ = ["AsyncClient", "Client", "Feedback", "Predictions", "Timing"]
