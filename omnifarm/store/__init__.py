"""Bytes and names: one small interface over memory, a folder and S3, with create-once and compare-and-swap."""
