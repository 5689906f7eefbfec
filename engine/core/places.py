"""What of a storage's URL people may see."""

import re

# Up to the last @ of all, since a password that nobody quoted may hold any character.
_SECRET = re.compile(r"^(?!file:|sqlite)([^:/]+://[^:/?#@]*):.*(?=@)", re.DOTALL)
_OPTION = re.compile(r"([?&](?:password|sslpassword)=)[^&#]*")


def shown(url: str) -> str:
    """Return a URL as errors, logs and lists may show it: with `***` for a password."""
    return _OPTION.sub(r"\1***", _SECRET.sub(r"\1:***", url))
