"""A stock BentoML service with a file as parameter, as its documentation has it: what ours must not be.

Started by `bentoml serve tests.support.stock:Stock`.
"""

from pathlib import Path

import bentoml


@bentoml.service(name="stock")
class Stock:
    @bentoml.api
    def predict(self, image: Path) -> int:
        return image.stat().st_size
