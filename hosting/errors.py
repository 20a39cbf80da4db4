"""The one exception that the command line shows without a traceback."""


class HostError(RuntimeError):
    """A failure that the user can act on: its text says what was expected, what came and what to do."""
