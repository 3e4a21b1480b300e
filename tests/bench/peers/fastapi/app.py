"""FastAPI, as its documentation writes an upload."""

import numpy as np
from classifier import Classifier
from fastapi import FastAPI, UploadFile

app = FastAPI()
classifier = Classifier()


@app.post("/predict")
async def predict(image: UploadFile) -> dict:
    pixels = classifier.pixels(await image.read())
    [answer] = classifier.answers(pixels[np.newaxis])
    return answer
