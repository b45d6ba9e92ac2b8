"""The one exception that a user can cause."""


class UserError(Exception):
    """Something a user can mend. The message names the key or file, what was found, and what to do."""
