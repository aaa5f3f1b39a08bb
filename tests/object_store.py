"""An object store on this machine: moto's S3 server, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer

BUCKET = "ward"


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; the environment points to it, for this process and those that it starts."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    moto_api_backend.reset()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "mine", "DEFAULT_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        place = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield f"s3://{BUCKET}"
    finally:
        server.stop()
        import fsspec

        fsspec.get_filesystem_class("s3").clear_instance_cache()


def put(folder: Path, prefix: str) -> None:
    """Every file of `folder` into the bucket."""
    client = boto3.client("s3")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")


def names() -> list[str]:
    """Of everything in the bucket."""
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in found.get("Contents", [])]
