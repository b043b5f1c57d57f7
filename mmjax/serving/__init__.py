"""Answering over HTTP: bodies and wire (bytes to rows and back), engine (the device), routes and app (Litestar)."""
