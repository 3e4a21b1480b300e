"""MLServer: a custom runtime, as its documentation writes one; the image is base64 in the V2 protocol's JSON."""

import json

import numpy as np
from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Peer(MLModel):
    async def load(self) -> bool:
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [images] = payload.inputs
        pixels = [self.classifier.pixels(encoded) for encoded in Base64Codec.decode_input(images)]
        answers = [json.dumps(answer) for answer in self.classifier.answers(np.stack(pixels))]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("answers", answers)])
