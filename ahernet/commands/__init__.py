"""The commands: one step each, from files of features to a score."""

from ahernet.commands import data, demonstration, experiments, localization, training

COMMANDS = {
    **demonstration.COMMANDS,
    **data.COMMANDS,
    **training.COMMANDS,
    **localization.COMMANDS,
    **experiments.COMMANDS,
}
