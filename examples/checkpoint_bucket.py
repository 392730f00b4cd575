"""A checkpoint hook that puts each checkpoint into a bucket with object lock.

pip install boto3
export MM_TASKS_CHECKPOINT_HOOK=checkpoint_bucket:hook CHECKPOINT_BUCKET=erasure-checkpoints

Create the bucket with object lock. In mode COMPLIANCE nobody can delete a version or shorten its
retention, not even the account's owner. boto3 reads the credentials and, for a store that is not
AWS, AWS_ENDPOINT_URL_S3 from the environment; the credentials need s3:PutObject and
s3:PutObjectRetention alone.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mm_tasks.erasures import Checkpoint

RETENTION = timedelta(days=3 * 365)


def hook(checkpoint: Checkpoint) -> None:
    """Store a checkpoint; a failure raises, and is counted and logged by mm_tasks."""
    _client().put_object(
        Bucket=os.environ["CHECKPOINT_BUCKET"],
        # In the order of their sizes.
        Key=f"checkpoints/{checkpoint.size:012}",
        # As in the file `checkpoints`, which scripts/verify_audit.py reads.
        Body="{} {} {}\n".format(*checkpoint).encode(),
        ContentType="text/plain",
        ChecksumAlgorithm="SHA256",  # which object lock demands
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=datetime.now(UTC) + RETENTION,
    )


@cache
def _client() -> Any:
    timeouts = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    return boto3.client("s3", config=timeouts)
