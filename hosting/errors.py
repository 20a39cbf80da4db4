"""The one exception that the command line shows without a traceback."""

from ..client.errors import ComfyError as HostError

__all__ = ["HostError"]
