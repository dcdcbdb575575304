"""The one exception that means: the user can fix this; and what says that memory was short."""

# In messages of torch, its libraries and Triton, whose types of errors differ.
SHORT_OF_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "std::bad_alloc")


class UserError(Exception):
    """Bad input from a user.

    The message is one line that names the file, video id or argument and what was expected.
    The command line prints it without a traceback and exits with code 2.
    """


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was short, of a GPU or the machine, or the error arose while one that says so was handled."""
    if error is None:
        return False
    named = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in SHORT_OF_MEMORY)
    return isinstance(error, MemoryError) or named or is_out_of_memory(error.__context__)
