"""Undo that a shell ignores Ctrl-C in background jobs: processes that tests interrupt would inherit it."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
