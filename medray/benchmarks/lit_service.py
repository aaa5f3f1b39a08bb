"""A LitServe service around a bundle: the same decoding, preprocessing and network as medray's, at its best settings.

Requests are {image: base64}, batched by LitServe (up to BATCH, no longer than WAIT_S), handed over by its fast queue to
one process with all threads. Images are decoded in that process, without limits of their own. No keys, audit or drift.
Command: python -m medray.benchmarks.lit_service BUNDLE PORT
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from medray.benchmarks import peers
from medray.benchmarks.plain_service import BATCH, as_json
from medray.inference.predictor import Predictor
from medray.types import Case, InputError, Prediction

WAIT_S = 0.005


def api(folder: Path) -> Any:
    """The LitAPI, whose class is made here so that nothing needs LitServe where it is not measured."""
    litserve = peers.load("litserve")

    class Api(litserve.LitAPI):  # type: ignore[misc, name-defined]
        """As LitServe's manual shows it."""

        def __reduce__(self) -> tuple[Any, ...]:
            """To the process that answers: this class is made there anew."""
            return api, (folder,), self.__dict__

        def setup(self, device: str) -> None:  # noqa: ARG002
            self.predictor = Predictor(folder)

        def decode_request(self, request: dict[str, str]) -> Case:
            return self.predictor.read(base64.b64decode(request["image"]))

        def batch(self, inputs: list[Case]) -> list[Case]:
            return inputs

        def predict(self, inputs: list[Case]) -> list[Prediction | InputError]:
            return list(self.predictor.predict_all(inputs, BATCH))

        def unbatch(self, output: list[Prediction | InputError]) -> list[Prediction | InputError]:
            return output

        def encode_response(self, output: Prediction | InputError) -> dict[str, Any]:
            return {"code": output.code} if isinstance(output, InputError) else as_json(output)

    return Api(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/v1/predict")


def main() -> None:
    """Serve until a signal ends it."""
    litserve = peers.load("litserve")
    server = litserve.LitServer(api(Path(sys.argv[1])), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
