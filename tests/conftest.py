"""In the background a shell ignores Ctrl-C, and children inherit that: those that tests interrupt must not."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
