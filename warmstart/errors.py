"""The one error that means "your input": what was expected, what came, what to do."""


class InputError(ValueError):
    """Raised for input a person can mend: a path, a text, a setting, a model folder.

    The message names what was expected, what came and what to do. The command line prints it without a traceback.
    """
