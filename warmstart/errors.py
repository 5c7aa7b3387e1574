"""`InputError`: the exception for input that the user can mend."""


class InputError(ValueError):
    """Raised for a path, a text, a parameter or a model folder that cannot be used.

    The message names what was expected, what was given and how to mend it. The command line prints it in one line.
    """


class NoTextError(InputError):
    """Raised for sources that can be read and have no text or no token. A shard of a corpus may be such."""
