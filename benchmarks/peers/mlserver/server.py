"""One of our models behind MLServer with adaptive batching: the V2 protocol, a runtime of our own.

mlserver start .    # with the variables of peer.toml's [environment]
curl 127.0.0.1:8001/v2/models/digits/infer -H 'Content-Type: application/json' -d '{"inputs":
[{"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0, ...]}]}'
"""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """`image`, UINT8 [N,28,28], to `probabilities`, FP32 [N,10]."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = self.settings.parameters.uri
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        image = NumpyCodec.decode_input(payload.inputs[0])
        (probabilities,) = self.session.run(["probabilities"], {"image": image})
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])
