"""The exceptions that a command line shows without a traceback."""


class ComfyError(RuntimeError):
    """A failure that the user can act on: its text says what was expected, what came and what to do."""


class PromptError(ComfyError):
    """ComfyUI refused a prompt, or a node of it failed; the text names the nodes and their complaints."""


class ServerGone(ComfyError):
    """The server does not answer, hung up, or has forgotten the prompt: it may be tried again, here or elsewhere."""
