"""Text of strangers, safe to show on a terminal."""


def printable(text: str) -> str:
    """Escape what would disturb a terminal: control characters, line ends, what turns the direction of writing."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
