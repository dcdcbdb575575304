"""The commands: one step each, from files of features to a score."""

from ahernet.commands import data, demonstration, experiments, extraction, localization, training

COMMANDS = {
    **demonstration.COMMANDS,
    **data.COMMANDS,
    **extraction.COMMANDS,
    **training.COMMANDS,
    **localization.COMMANDS,
    **experiments.COMMANDS,
}
