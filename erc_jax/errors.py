"""The one error that users are meant to read."""


class UserError(Exception):
    """Something the user can mend: a file, a config, a command line.

    The message says what was found, where (file and line), what was expected and what to do.
    The command line prints it without a traceback; anything else that is raised is a bug of ours.
    """
