"""The blocking API, written from api._async by scripts/unasync.py."""
