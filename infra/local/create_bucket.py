"""Wait for the S3 server named by the AWS variables and create the bucket `$S3_BUCKET`; safe to repeat."""

import os
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

TIMEOUT_S = 60


def main() -> int:
    """Return 0 once the bucket takes objects, 1 when it does not within the timeout."""
    bucket = os.environ["S3_BUCKET"]
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=bucket)
            # Volumes are grown by the first write and, after a restart, known some seconds after everything else; an
            # object of no bytes lies in none.
            client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
            is_read = client.get_object(Bucket=bucket, Key=".ready")["Body"].read() == b"ready"
            client.delete_object(Bucket=bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            is_read = False
        if is_read:
            return 0
        time.sleep(0.3)
    return 1


if __name__ == "__main__":
    sys.exit(main())
