"""The peer of P10: reads an object by ranged GETs side by side with boto3, and does nothing with the bytes.

usage: ranged_gets.py BUCKET KEY THREADS; prints the seconds that it took, without starting and the first connection.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

PIECE = 8 << 20


def main() -> None:
    bucket, key, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    client = boto3.client("s3", config=Config(max_pool_connections=threads))
    size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]

    def get(offset: int) -> int:
        wanted = f"bytes={offset}-{min(offset + PIECE, size) - 1}"
        return len(client.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read())

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        received = sum(pool.map(get, range(0, size, PIECE)))
    seconds = time.perf_counter() - begin
    if received != size:
        sys.exit(f"{received} bytes came of {size}")
    print(seconds)


if __name__ == "__main__":
    main()
