"""Answering over HTTP: wire (bytes to rows and back), engine (the device), routes and app (Litestar)."""
