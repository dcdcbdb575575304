"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Bad input from a user.

    The message is one line that names the file, video id or argument and what was expected.
    The command line prints it without a traceback and exits with code 2.
    """
