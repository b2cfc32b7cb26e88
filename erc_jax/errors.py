"""What ends a command: the error that users are meant to read, and being told to stop."""


class UserError(Exception):
    """Something the user can mend: a file, a config, a command line.

    The message says what was found, where (file and line), what was expected and what to do.
    The command line prints it without a traceback; anything else that is raised is a bug of ours.
    """


class Stopped(Exception):
    """The run was told to stop (SIGTERM); its state is saved, and the same command goes on."""


# Of the command. What restarts commands (launch/) goes by them.
MISTAKE_EXIT_CODE = 1  # the user's
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL
CRASHED_EXIT_CODE = 70  # EX_SOFTWARE
LOST_EXIT_CODE = 76  # EX_PROTOCOL: processes that work together have lost each other
